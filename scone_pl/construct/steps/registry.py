"""All steps by their names in a pipeline's file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scone_pl.construct.steps.base import Step
from scone_pl.construct.steps.compose import Compose, Render
from scone_pl.construct.steps.consistency import Consistency
from scone_pl.construct.steps.draw import Draw
from scone_pl.construct.steps.duplicates import Duplicates
from scone_pl.construct.steps.editing import Editing
from scone_pl.construct.steps.grounding import Grounding
from scone_pl.construct.steps.leaks import Decontaminate
from scone_pl.construct.steps.quality import Quality
from scone_pl.construct.steps.reversal import Reversal
from scone_pl.construct.steps.synthesis import Synthesis
from scone_pl.construct.steps.verification import Verification
from scone_pl.construct.steps.watermarks import Watermarks
from scone_pl.construct.strict import build
from scone_pl.data.members import is_key
from scone_pl.errors import UserError

STEPS: dict[str, type[Step]] = {
    "quality": Quality,
    "duplicates": Duplicates,
    "decontaminate": Decontaminate,
    "draw": Draw,
    "compose": Compose,
    "watermarks": Watermarks,
    "consistency": Consistency,
    "reversal": Reversal,
    "editing": Editing,
    "boxes": Grounding,
    "verify": Verification,
    "synthesize": Synthesis,
}
_FOLLOWED_BY: dict[type[Step], Callable[[Step], Step]] = {
    Compose: lambda step: Render(name=step.name, input=(f"{step.name}-choice",))
}
"""Steps that are two: the first chooses, comparing samples; the second does the work, in processes."""


def parse_steps(contents: Sequence[Any], seed: int) -> list[Step]:
    """The steps of a pipeline's file.

    Raises:
        UserError: an unknown step or setting.
    """
    steps: list[Step] = []
    for number, content in enumerate(contents):
        where = f"steps[{number}]"
        if not isinstance(content, Mapping) or not isinstance(content.get("step"), str):
            raise UserError(f"{where}: must be a mapping with `step: NAME`, not {content!r:.60}")
        kind = content["step"]
        if kind not in STEPS:
            close = difflib.get_close_matches(kind, STEPS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(STEPS)}"
            raise UserError(f"{where}: no step {kind!r:.60}; {hint}")
        settings = {name: value for name, value in content.items() if name != "step"}
        settings.setdefault("name", kind)
        step = build(STEPS[kind], settings, f"{where} ({kind})")
        if not is_key(step.name):
            raise UserError(f"{where}: the name {step.name!r:.60} must be letters, digits, _ or -")
        if hasattr(step, "seed") and "seed" not in settings:
            step = replace(step, seed=seed)  # type: ignore[call-arg]  # such steps have a seed
        if type(step) in _FOLLOWED_BY:
            steps.append(replace(step, name=f"{step.name}-choice"))
            steps.append(_FOLLOWED_BY[type(step)](step))
        else:
            steps.append(step)
    return steps
