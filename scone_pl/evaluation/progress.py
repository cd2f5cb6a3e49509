"""What a person sees while thousands of things are done: how many, time left, and what else counts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

_LOG_EVERY = 30.0
_LOOK_EVERY = 2.0


class ProgressLine:
    """A bar on a terminal; elsewhere a line every half minute, for logs."""

    def __init__(self, what: str, total: int, *, more: Callable[[], str] = str, show: bool = True) -> None:
        """Counts to `total`.

        Args:
            what: is being done.
            total: how often.
            more: what else to say.
            show: False = nothing is shown.
        """
        self._what, self._total, self._more, self._show = what, total, more, show
        self._done = self._at_start = 0
        self._began = self._logged = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if show and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                TextColumn("left", table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[more]}", table_column=Column(overflow="fold")),
                console=console,
            )

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, more="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self._done, more=self._more())
            self._bar.stop()
        elif self._show:
            self._log()

    def advance(self) -> None:
        """One more is done."""
        self.reached(self._done + 1)

    def reached(self, done: int, *, at_start: bool = False) -> None:
        """`done` are done; `at_start`: they were before, and say nothing about the speed."""
        self._done = done
        self._at_start = done if at_start else self._at_start
        if self._bar and at_start:
            self._bar.reset(self._task, completed=done)
        elif self._bar:
            self._bar.update(self._task, completed=done, more=self._more())
        elif self._show and time.monotonic() - self._logged > _LOG_EVERY:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        new = self._done - self._at_start
        text = f"{self._what}: {self._done} of {self._total}"
        if new and self._done < self._total:
            text += f", {(self._logged - self._began) / new * (self._total - self._done):.0f} s left"
        more = self._more()
        print(f"{text}{f', {more}' if more else ''}", file=sys.stderr, flush=True)


class Watch:
    """Shows how far others have come: looks every other second, in a thread, until its `with` ends."""

    def __init__(self, counter: ProgressLine, look: Callable[[], int]) -> None:
        """`look` tells how many are done."""
        self._counter, self._look = counter, look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._counter.__enter__()
        self._counter.reached(self._look(), at_start=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._counter.reached(self._look())
        self._counter.__exit__(kind, error, traceback)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_EVERY):
            self._counter.reached(self._look())
