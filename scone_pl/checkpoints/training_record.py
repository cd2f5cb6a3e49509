"""`training.json` of a checkpoint folder, which says how its weights came about; and bridges given as JSON objects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.config import BridgeConfig

FILE = "training.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The object in `training.json`; empty if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    return read_json(folder / FILE, dict) if (folder / FILE).exists() else {}


def steps_of(folder: Path) -> int:
    """Optimizer steps that the weights were trained for; 0 if nothing is recorded.

    Raises:
        UserError: the record is damaged.
    """
    steps = read_record(folder).get("steps", 0)
    if type(steps) is not int or steps < 0:
        raise UserError(f"{folder / FILE}: steps is {steps!r:.80}; it must be a whole number from 0")
    return steps


def bridge_from(values: object, source: str) -> BridgeConfig:
    """A bridge of settings by name.

    Args:
        values: what JSON gave.
        source: what a message calls it.

    Raises:
        UserError: not an object, an unknown setting, or a value of a wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: {values!r:.80} is no object of bridge settings")
    hints = get_type_hints(BridgeConfig)
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{source}: there is no setting {name!r:.80}; choose from {', '.join(_setting_names())}")
        if not _is_valid(value, hints[name]):
            raise UserError(f"{source}: {name} is {value!r:.80}, which is no {_description(hints[name])}")
    try:
        return BridgeConfig(**values)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _setting_names() -> list[str]:
    return [field.name for field in fields(BridgeConfig)]


def _is_valid(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e30 and math.isfinite(value)
    options = get_args(hint)
    return any(_is_valid(value, option) for option in options) if options else type(value) is hint


def _description(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if options := get_args(hint):
        return " or ".join(map(_description, options))
    return {bool: "true or false", int: "whole number", float: "finite number", type(None): "null"}[hint]
