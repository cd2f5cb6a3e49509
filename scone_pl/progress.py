"""Progress of a long task on standard error: a rich bar on a terminal, a line every `INTERVAL` seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Item = TypeVar("Item")

INTERVAL = 10.0
"""Seconds between two lines of progress where standard error is not a terminal."""
_POLL_INTERVAL = 2.0
"""Seconds between two looks of a `Watcher`."""


class Lines:
    """Lines of progress, at most one every `INTERVAL` seconds, but for those that must appear."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, text: Callable[[], str], *, must: bool = False) -> None:
        """Prints `text()` if it is time for a line, or if it `must` appear."""
        now = time.monotonic()
        if must or now - self._last >= INTERVAL:
            self._last = now
            print(text(), file=sys.stderr, flush=True)


class Progress:
    """Counts what is done; a context manager."""

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        unit: str = "",
        status: Callable[[], str] = str,
        show: bool = True,
    ) -> None:
        """Nothing is shown before the context is entered.

        Args:
            description: of the task.
            total: number of items; None = unknown.
            unit: plural noun for the items.
            status: what else to show, asked at each update.
            show: False = show nothing.
        """
        self.completed = 0
        self._description, self._total, self._unit = description, total, unit
        self._status, self._show = status, show
        self._initial = 0
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._lines = Lines()
        if self._show and sys.stderr.isatty():
            self._bar = _terminal_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._total, unit=self._unit, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.completed, status=self._status())
            self._bar.stop()
        elif self._show:
            self._lines.show(self._line, must=True)

    def advance(self, count: int = 1) -> None:
        """`count` more items are done."""
        self.update(self.completed + count)

    def update(self, completed: int, *, initial: bool = False) -> None:
        """`completed` items are done; `initial`: they were before this task began, so they say nothing about speed."""
        self.completed = completed
        if initial:
            self._initial = completed
        if self._bar is not None and initial:
            self._bar.reset(self._task, completed=completed)
        elif self._bar is not None:
            self._bar.update(self._task, completed=completed, status=self._status())
        elif self._show:
            self._lines.show(self._line)

    def _line(self) -> str:
        total = "" if self._total is None else f" of {self._total}"
        parts = [f"{self._description}: {self.completed}{total} {self._unit}".rstrip()]
        new, seconds = self.completed - self._initial, time.monotonic() - self._started
        if new and self._total is not None and self.completed < self._total:
            parts.append(f"{seconds / new * (self._total - self.completed):.0f} s left")
        return ", ".join(part for part in (*parts, self._status()) if part)


def track(
    items: Iterable[Item], description: str, total: int | None, *, unit: str = "", show: bool = True
) -> Iterator[Item]:
    """Yields `items` and shows how many have been taken; arguments as of `Progress`."""
    with Progress(description, total, unit=unit, show=show) as progress:
        for item in items:
            yield item
            progress.advance()


class Watcher:
    """Shows the progress of other processes: polls it in a thread while the context is open."""

    def __init__(self, progress: Progress, count: Callable[[], int]) -> None:
        """`count` returns the number of items done."""
        self._progress, self._count = progress, count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Watcher:
        self._progress.__enter__()
        self._progress.update(self._count(), initial=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.update(self._count())
        self._progress.__exit__(kind, error, traceback)

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_INTERVAL):
            self._progress.update(self._count())


def _terminal_bar() -> Bar:
    # Not at the top: a log needs none of it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    def column(overflow: str = "ellipsis") -> Column:
        return Column(no_wrap=overflow != "fold", overflow=overflow)  # type: ignore[arg-type] # a literal of rich's

    return Bar(
        TextColumn("{task.description}", markup=False, table_column=column()),
        BarColumn(bar_width=16, table_column=column()),
        MofNCompleteColumn(table_column=column()),
        TextColumn("{task.fields[unit]}", table_column=column()),
        TimeRemainingColumn(table_column=column()),
        TextColumn("{task.fields[status]}", markup=False, table_column=column("fold")),
        console=Console(stderr=True),
    )
