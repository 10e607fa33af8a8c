"""Progress bars with an estimate of the time left; silent when standard error is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress_columns() -> list[object]:
    """The columns of every bar of this package: description, bar, count, elapsed and remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    ]  # fmt: skip


def track(items: Sequence[T], description: str, *, show: bool | None = None) -> Iterator[T]:
    """Iterate with a bar; ``show=None`` shows it only when standard error is a terminal."""
    if not (sys.stderr.isatty() if show is None else show and sys.stderr.isatty()):
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(), console=Console(stderr=True), transient=True) as bar:  # type: ignore[arg-type]
        yield from bar.track(items, description=description)
