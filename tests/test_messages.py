"""What users must see is seen, whatever filters of Python warnings say; others' warnings are shown, but for a few."""

from __future__ import annotations

import subprocess
import sys

from running import environment

CODE = """
import warnings
from scone_pl import messages
messages.configure()
messages.warn("two\\nlines")
warnings.warn("somebody   else's")
warnings.warn("Checkpoint directory /x exists and is not empty.")
"""


def stderr(**more: str) -> list[str]:
    command = [sys.executable, "-c", CODE]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=True
    ).stderr.splitlines()


def test_one_line_each() -> None:
    assert stderr() == ["warning: two lines", "warning: somebody else's"]


def test_filters_of_python_warnings_hide_no_message() -> None:
    assert stderr(PYTHONWARNINGS="ignore") == ["warning: two lines"]
