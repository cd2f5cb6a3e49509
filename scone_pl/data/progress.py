"""Progress bars: moving on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_SECONDS_A_LINE = 30.0


class _Lines:
    """A stream to which each state of a bar is a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(*args: Any, show: bool, **kwargs: Any) -> tqdm:
    """A tqdm bar on standard error; where that is no terminal, a line every 30 seconds and one at the end.

    Args:
        args: tqdm's.
        show: false = none.
        kwargs: tqdm's.
    """
    if show and not sys.stderr.isatty():
        kwargs.update(file=_Lines(), mininterval=_SECONDS_A_LINE, maxinterval=_SECONDS_A_LINE, ascii=True)
    return tqdm(*args, disable=not show, **kwargs)
