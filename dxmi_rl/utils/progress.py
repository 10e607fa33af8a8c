"""Progress bars with an estimate of the time left; silent when standard error is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

T = TypeVar("T")


def progress_columns() -> list[ProgressColumn]:
    """The columns of every bar of this package: description, bar, count, elapsed and remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    ]  # fmt: skip


@contextlib.contextmanager
def progress(
    description: str, total: float, *, completed: float = 0, show: bool = True
) -> Iterator[Callable[[float], None]]:
    """A bar that is told how much is done; silent unless ``show`` and standard error is a terminal."""
    if not (show and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=completed)  # type: ignore[arg-type]
        yield lambda done: bar.update(task, completed=min(done, total))


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Iterate with a bar."""
    with progress(description, len(items)) as advance:
        for index, item in enumerate(items, 1):
            yield item
            advance(index)
