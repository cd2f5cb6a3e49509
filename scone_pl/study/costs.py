"""Tables of what `benchmarks/tokens.py --output` measured, for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scone_pl.markdown import markdown_table

_ROWS = {"mask": "masked", "paper": "left out", "later": "left out in all later layers", "dropped": "dropped"}
_BASES = {"mask": "", "paper": ", over nothing blocked"}
"""What the cases of one percentage are compared with; 0 % has no mask."""
_COLUMNS = {
    "training step": "step_seconds",
    "its memory, recomputing": "step_memory",
    "keeping": "step_memory_kept",
    "prefill": "prefill_seconds",
    "sampling step": "sample_step_seconds",
    "cache": "cache_bytes",
    "FLOPs of a 7B step": "full_flops",
}


def cost_tables(cost: Mapping[str, Any]) -> list[str]:
    """Every case over the masked one with the same percentage of blocked tokens.

    Failed cases are named: they have no numbers, and their percentage no ratios if the failed one was its base.
    """
    cases = {(case["blocked_percent"], case["row"]): case for case in cost["cases"]}
    rows, failed = [], []
    for (percent, row), case in cases.items():
        base_row = "mask" if percent else "paper"
        base, name = cases[percent, base_row], f"{percent} % blocked, {_ROWS[row]}"
        if "error" in case:
            failed.append(f"{name} ({case['error']})")
        elif case is not base and "error" not in base:
            rows.append([name + _BASES[base_row], *(f"{case[key] / base[key]:.2f}" for key in _COLUMNS.values())])
    settings = cost["settings"]
    made = [f"commit {cost['commit']}", *(f"{k} {v}" for k, v in cost["versions"].items())] if "commit" in cost else []
    how = (
        f"Time and memory, over a mask that does all the work (`benchmarks/tokens.py`: {settings['tokens']} tokens, "
        f"width {settings['width']}, {settings['layers']} layers, {settings['threads']} threads, "
        f"{settings['clock']} clock; the last column is counted at full size"
        f"{''.join(f'; {part}' for part in made)}):"
    )
    parts = [how, markdown_table(["over the mask", *_COLUMNS], rows)]
    return [*parts, f"Failed: {', '.join(failed)}."] if failed else parts
