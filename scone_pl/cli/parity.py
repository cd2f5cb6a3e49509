"""`python -m scone_pl parity`: comparison with numbers that the published implementation computed."""

from __future__ import annotations

from scone_pl.cli.parsing import run_function
from scone_pl.parity import parity


def main(args: list[str]) -> int:
    """Runs `parity`."""
    named = args if not args or args[0].startswith("-") else ["--folder", *args]
    return run_function(parity, "python -m scone_pl parity", named, as_positional=False)
