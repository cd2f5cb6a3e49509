"""The registry of evaluators: name in a study's YAML -> class; see `scone_pl.evaluation.evaluator`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Evaluator

REGISTRY = {
    "shapes": "scone_pl.worlds.shapes.evaluator:ShapesEvaluator",
    "icons": "scone_pl.worlds.icons.evaluator:IconsEvaluator",
    "sconeeval": "scone_pl.evaluation.judged:SconeEvalEvaluator",
    "omnicontext": "scone_pl.evaluation.judged:OmniContextEvaluator",
    "micon": "scone_pl.evaluation.judged:MiconEvaluator",
    "multibanana": "scone_pl.evaluation.judged:MultiBananaEvaluator",
    "layers": "scone_pl.evaluation.layers:LayersEvaluator",
}
DEFAULT = "shapes"
"""Of an evaluation that names none, and of results that were stored before there was a choice."""


def evaluator_class(name: str) -> type[Evaluator]:
    """The class that `name` stands for.

    Raises:
        UserError: none.
    """
    if name not in REGISTRY:
        raise UserError(f"no evaluator {name}; choose from {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    evaluator: type[Evaluator] = getattr(importlib.import_module(module), attribute)
    return evaluator


def evaluator_of(content: Mapping[str, Any]) -> Evaluator:
    """The evaluator that a mapping from YAML describes; see `evaluator_class` and `Evaluator.from_mapping`."""
    settings = dict(content)
    return evaluator_class(settings.pop("evaluator", DEFAULT)).from_mapping(settings)
