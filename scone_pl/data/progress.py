"""Progress bars on a terminal, periodic lines in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_SECONDS_A_LINE = 30.0


class _Lines:
    """Writes each state of a progress bar as a separate line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(*args: Any, show: bool, **kwargs: Any) -> tqdm:
    """A tqdm bar on standard error; if that is not a terminal, a line every 30 seconds and one at the end.

    Args:
        args: passed to tqdm.
        show: whether to show it.
        kwargs: passed to tqdm.
    """
    if show and not sys.stderr.isatty():
        kwargs.update(file=_Lines(), mininterval=_SECONDS_A_LINE, maxinterval=_SECONDS_A_LINE, ascii=True)
    return tqdm(*args, disable=not show, **kwargs)
