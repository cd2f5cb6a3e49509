"""Parsed settings against the ranges of what they are for, before anything is built, read or started."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from scone_pl.data.datamodule import PackedDataModule
from scone_pl.training.callbacks import Previews
from scone_pl.training.module import SconeModule
from scone_pl.training.monitoring import Monitoring
from scone_pl.training.saving import Saving
from scone_pl.training.settings import StageSettings

_SECTIONS = {"data": PackedDataModule, "checkpoint": Saving, "previews": Previews, "monitoring": Monitoring}


def check_values(settings: Any) -> None:
    """Checks all numbers and combinations of settings that need no checkpoint folder.

    Args:
        settings: a recipe as parsed, of one stage.

    Raises:
        UserError: a value is out of its range, in one line that names its key.
    """
    for name, kind in _SECTIONS.items():
        if section := settings.get(name):
            kind(**_arguments(kind, section))
    model = settings.get("model")
    if model and model.get("init_args"):
        _built(StageSettings, model.init_args)


def check_stage(settings: Any, init_from: str) -> None:
    """Builds a stage's module, without its weights, as if it started from `init_from`.

    Raises:
        UserError: its settings do not go together, or do not fit that checkpoint.
    """
    parser = ArgumentParser()
    parser.add_subclass_arguments(SconeModule, "model")
    model = settings.model.clone()
    model.init_args.init_from = init_from
    parser.instantiate_classes(Namespace(model=model))  # type: ignore[no-untyped-call] # jsonargparse's, unannotated


def _arguments(kind: type, section: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for owner in reversed(kind.__mro__):
        if inspect.isfunction(vars(owner).get("__init__")):
            hints |= get_type_hints(vars(owner)["__init__"])
    return {name: _built(hints.get(name), value) for name, value in vars(section).items()}


def _built(hint: Any, value: Any) -> Any:
    """`value` with dataclasses in place of parsed sections."""
    if isinstance(value, list):
        inner = next((get_args(part)[0] for part in (hint, *get_args(hint)) if _is_list(part)), None)
        return [_built(inner, item) for item in value]
    kind = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
    if kind is None or not isinstance(value, Namespace | Mapping):
        return value
    hints = get_type_hints(kind)
    items = vars(value).items() if isinstance(value, Namespace) else value.items()
    return kind(**{name: _built(hints.get(name), item) for name, item in items})  # type: ignore[operator]  # kind is a dataclass


def _is_list(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is list
