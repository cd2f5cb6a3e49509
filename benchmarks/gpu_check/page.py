"""Shows the committed results (docs/gpu/*.json) in docs/gpu.md, so that page and results cannot differ.

python -m benchmarks.gpu_check.page            # rewrites the tables in the page
python -m benchmarks.gpu_check.page --check    # status 1 if they are not those of the results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_json, read_text, write_text
from scone_pl.markdown import markdown_table

PAGE = Path("docs/gpu.md")
RESULTS = Path("docs/gpu")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NONE_YET = "No results from a GPU have been committed yet: nothing in this section has been measured."


def rendered(page: str, results: Path) -> str:
    """`page` with the tables of all JSON files in `results` between its markers.

    Raises:
        UserError: the page lacks a marker, or a file is no result of the check on a GPU.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE}: needs the lines {BEGIN} and {END}")
    files = sorted(results.glob("*.json"))
    sections = [section(file.stem, read_json(file, dict)) for file in files] or [NONE_YET]
    return "\n\n".join([before + begin, *sections, end + after])


def section(name: str, results: dict[str, Any]) -> str:
    """Heading, table of the steps, and what each of them measured."""
    steps = results.get("steps")
    if not isinstance(steps, dict) or results.get("quick") or not str(results.get("device")).startswith("cuda"):
        raise UserError(f"{RESULTS / name}.json: no result of python -m benchmarks.gpu_check on a GPU at full size")
    lines = [f"### {name}", f"Commit {results['commit']}, {results['date']}."]
    rows = [[step, s["status"], f"{s['seconds']:.1f}"] for step, s in steps.items()]
    lines.append(markdown_table(["step", "status", "seconds"], rows, text=(0, 1)))
    problems = [f"- {step}: {problem}" for step, s in steps.items() for problem in s["problems"]]
    if problems:
        lines.append("\n".join(["Problems:", "", *problems]))
    for step, describe in DESCRIBED.items():
        values = steps.get(step, {}).get("values")
        if values:
            lines += describe(values)
    return "\n\n".join(lines)


def _rates(values: dict[str, Any]) -> list[str]:
    rates = values.get("flops_per_second", {})
    products = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in rates.items())
    copies = values.get("copy_bytes_per_second", 0) / 1e12
    versions = ", ".join(f"{name} {version}" for name, version in values.get("versions", {}).items())
    return [f"{values.get('device')}: matrix products {products}; copies {copies:.2f} TB/s. {versions}."]


def _attention(values: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{e.get('forward', float('nan')):.1e}", f"{e.get('backward', float('nan')):.1e}"]
        for name, e in sorted(values.get("worst", {}).items())
    ]
    text = f"Attention against float64, largest relative errors of {values.get('compared', 0)} comparisons:"
    return [text, markdown_table(["backend, dtype", "forward", "backward"], rows)] if rows else []


def _parity(values: dict[str, Any]) -> list[str]:
    agreeing = ", ".join(f"{name} {v['agree']} of {v['quantities']}" for name, v in values.items())
    return [f"Parity, quantities that agree: {agreeing}."]


def _recompilations(values: dict[str, Any]) -> list[str]:
    counts = values.get("compilations") or [0]
    return [f"Compilations of FlexAttention over {len(counts)} packs: {counts[-1]} (limit {values.get('limit')})."]


def _training(values: dict[str, Any]) -> list[str]:
    lines = []
    rows = [
        [
            name,
            *(_number(case, key, scale, digits) for key, scale, digits in ATTENTION_COLUMNS),
            case.get("problem", ""),
        ]
        for name, case in values.get("attention_alone", {}).items()
    ]
    if rows:
        heads = ["backend", "plan ms", "mask ms", "forward ms", "both ms", "forward TFLOP/s", "problem"]
        lines += [
            f"One layer's attention over {values['tokens']:,} tokens:",
            markdown_table(heads, rows, text=(0, 6)),
        ]
    rows = [
        [name, *(_number(case, key, scale, digits) for key, scale, digits in STEP_COLUMNS), case.get("problem", "")]
        for name, case in values.get("cases", {}).items()
    ]
    if rows:
        heads = ["training step", "s", "ratio", "MFU %", "with recomputation %", "peak GB", "ratio", "problem"]
        peak = f"predicted peak {values['predicted_peak'] / 1e9:.1f} GB"
        about = f"{values['layers']} layers, {values.get('parameters', 0) / 1e9:.2f} B parameters"
        lines += [
            f"A step of {about}, {values['tokens']:,} tokens; ratios to `bridge hard`; {peak}:",
            markdown_table(heads, rows, text=(0, 7)),
        ]
    return lines


ATTENTION_COLUMNS = (
    ("plan_seconds", 1e3, 2),
    ("mask_seconds", 1e3, 2),
    ("forward_seconds", 1e3, 2),
    ("forward_backward_seconds", 1e3, 2),
    ("forward_flops_per_second", 1e-12, 0),
)
STEP_COLUMNS = (
    ("seconds", 1, 3),
    ("time_ratio", 1, 2),
    ("mfu", 100, 1),
    ("mfu_with_recomputation", 100, 1),
    ("allocated", 1e-9, 1),
    ("memory_ratio", 1, 2),
)


def _number(values: dict[str, Any], key: str, scale: float, digits: int) -> str:
    return f"{values[key] * scale:.{digits}f}" if key in values else ""


def _resuming(values: dict[str, Any]) -> list[str]:
    snapshot = values.get("snapshot")
    if not snapshot:
        return []
    return [
        f"Killed after step {values['snapshot_at_kill']} of {values['steps']} and resumed: largest relative difference "
        f"of a loss {values['worst_loss_error']:.1e} (tolerance {values['tolerance']:.0e}). A snapshot of "
        f"{snapshot['bytes'] / 1e9:.1f} GB stops training for {snapshot['stall_seconds']:.2f} s and is on disk after "
        f"{snapshot['safe_seconds']:.2f} s."
    ]


def _sampling(values: dict[str, Any]) -> list[str]:
    columns = (("prefill_seconds", 1, 2), ("step_seconds", 1, 3), ("image_seconds", 1, 1), ("peak_bytes", 1e-9, 1))
    rows = [
        [f"{layers} layers, measured", *(_number(m, *column) for column in columns)]
        for layers, m in values.get("measured", {}).items()
    ]
    if "extrapolated" in values:
        rows.append([values["note"], *(_number(values["extrapolated"], *column) for column in columns)])
    pixels = values.get("pixels")
    heads = ["stack", "prefill s", "step s", "image of 49 steps s", "peak GB"]
    return [f"Sampling at {pixels} x {pixels}:", markdown_table(heads, rows)] if rows else []


def _synchronisations(values: dict[str, Any]) -> list[str]:
    rows = [
        [name, str(s["count"]), ", ".join(f"`{line}` {count}" for line, count in s["lines"].items())]
        for name, s in values.get("synchronisations", {}).items()
    ]
    return ["Host-device synchronisations of a step:", markdown_table(["step", "count", "lines"], rows, text=(0, 2))]


DESCRIBED: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "rates": _rates,
    "attention": _attention,
    "parity": _parity,
    "recompilations": _recompilations,
    "training": _training,
    "resuming": _resuming,
    "sampling": _sampling,
    "synchronisations": _synchronisations,
}
"""By step: its values as Markdown paragraphs."""


def main() -> int:
    """Rewrites or checks the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.page")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if the page is out of date")
    options = parser.parse_args()
    try:
        page = read_text(PAGE)
        new = rendered(page, RESULTS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        if page != new:
            print(f"error: {PAGE} is not what {RESULTS} says; run make gpu-page", file=sys.stderr)
        return int(page != new)
    write_text(new, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
