"""Progress bars with an estimate of the time left; silent when standard error is not a terminal, but for ``alive``."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

T = TypeVar("T")


class Advance(Protocol):
    """Tells a bar how much is done, and what else to show beside it."""

    def __call__(self, done: float, /, text: str = "") -> None: ...


def progress_columns() -> list[ProgressColumn]:
    """The columns of every bar of this package: description, bar, count, elapsed and remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    ]  # fmt: skip


@contextlib.contextmanager
def progress(description: str, total: float, *, completed: float = 0, show: bool = True) -> Iterator[Advance]:
    """A bar that is told how much is done; silent unless ``show`` and standard error is a terminal."""
    if not (show and sys.stderr.isatty()):
        yield lambda done, text="": None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=completed)  # type: ignore[arg-type]

        def advance(done: float, /, text: str = "") -> None:
            bar.update(task, completed=min(done, total), description=f"{description}: {text}" if text else description)

        yield advance


@contextlib.contextmanager
def alive(text: Callable[[], str], *, every: float = 10.0) -> Iterator[None]:
    """Where there is no terminal for a bar, a line on standard error every ``every`` seconds, less often in long work:
    ``text()`` and how long it has taken. For work in other processes, which has no bar of its own.
    """
    if sys.stderr.isatty():
        yield
        return
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        while not ended.wait(max(every, (time.monotonic() - started) / 10)):
            print(f"  {time.monotonic() - started:.0f} s: {text()}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def track(items: Sequence[T], description: str) -> Iterator[T]:
    """Iterate with a bar."""
    with progress(description, len(items)) as advance:
        for index, item in enumerate(items, 1):
            yield item
            advance(index)
