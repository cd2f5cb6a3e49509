"""What passed each step, and why others did not."""

from __future__ import annotations

from pathlib import Path

from scone_pl.construct.phases import State
from scone_pl.construct.pipeline import POOLS, Pipeline
from scone_pl.data.manifest import MANIFEST

_REASONS = 12


def status_text(pipeline: Pipeline) -> str:
    """A line for each step, and below it the reasons of rejections."""
    lines = [f"{pipeline.folder}: {len(pipeline)} entries in {len(pipeline.pools)} pools"]
    dollars = 0.0
    for name in (POOLS, *(step.name for step in pipeline.steps)):
        state = pipeline.state(name)
        if state is None:
            old = State.of(pipeline.step_folder(name))
            lines.append(f"  {name}: {'to be run again, settings or inputs have changed' if old else 'not run yet'}")
            continue
        dollars += state.dollars
        lines.append(f"  {name}: {state.read} read, {state.kept} kept{_spent(state)}")
        shown = list(state.reasons.items())
        lines += [f"    {count:>8} {reason}" for reason, count in shown[:_REASONS]]
        if len(shown) > _REASONS:
            lines.append(f"    {sum(n for _, n in shown[_REASONS:]):>8} of {len(shown) - _REASONS} other reasons")
        if not state.complete:
            lines.append("    run the same command again to ask what has no answer yet")
    for name in pipeline.outputs:
        folder: Path = pipeline.folder / "shards" / name
        lines.append(f"  {folder}{'' if (folder / MANIFEST).is_file() else ': not written yet'}")
    return "\n".join([*lines, *([f"  spent in the last runs of the steps: ${dollars:.2f}"] if dollars else [])])


def _spent(state: State) -> str:
    parts = [f"{state.calls} calls"] if state.calls else []
    parts += [f"${state.dollars:.2f}"] if state.dollars else []
    return "".join(f", {part}" for part in (*parts, f"{state.seconds:.1f} s"))
