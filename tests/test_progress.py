"""Progress of long tasks: lines in a log, a bar on a terminal, nothing where nothing is to be shown."""

from __future__ import annotations

import io
import sys
import time

import pytest

from scone_pl import progress
from scone_pl.progress import Progress, Watcher, track


def test_a_log_gets_a_line_an_interval_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(track(range(2000), "set", 2000, unit="items")) == 1999000
    assert capsys.readouterr().err == "set: 2000 of 2000 items\n"
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "INTERVAL", 3)
    with Progress("judging", 4, unit="calls", status=lambda: "1 failed") as shown:
        shown.update(1, initial=True)
        for _ in range(3):
            shown.advance()
    lines = capsys.readouterr().err.splitlines()
    # The clock advances a second whenever it is read: when a task starts, at each update, and for each line.
    assert lines == ["judging: 3 of 4 calls, 2 s left, 1 failed", "judging: 4 of 4 calls, 1 failed"]


def test_nothing_is_shown_on_request_and_totals_may_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "set", 3, show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert list(track(range(3), "set", None)) == [0, 1, 2]
    assert capsys.readouterr().err == "set: 3\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("set [a]", 3, unit="items", status=lambda: "[b] well") as shown:
        shown.advance(3)
    for text in ("set [a]", "3/3", "items", "[b] well"):
        assert text in terminal.getvalue()


def test_others_are_watched(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POLL_INTERVAL", 0.001)
    done: list[int] = [1]
    shown = Progress("generating", 3, unit="images")
    with Watcher(shown, lambda: len(done)):
        done.append(2)
        while shown.completed < 2:
            time.sleep(0.001)
        done.append(3)
    assert capsys.readouterr().err == "generating: 3 of 3 images\n"
