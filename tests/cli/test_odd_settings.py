"""Values of the right type that no setting can have: taken or refused in one line, never another exception."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from test_settings_are_read import SETTINGS

from scone_pl.errors import UserError

REQUIRED: dict[str, dict[str, Any]] = {
    "StageSettings": {"init_from": "weights", "trainable": ("understanding",)},
    "ResizeLimits": {"max_size": 16, "min_size": 8},
}
"""Of dataclasses whose required fields are more than texts."""
ODD: dict[Any, tuple[Any, ...]] = {
    int: (0, -1, 1, 2**31, 2**63, 10**30),
    float: (0.0, -0.0, -1.0, 1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), 3),
    str: ("", " ", "x", "a/b", "..", "x" * 300, "a\0b", "\n", "é", "\ud83d", "://"),
    bool: (True, False),
}


def values_of(hint: Any) -> Iterator[Any]:
    """Odd values of a type, as the parser would let through."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for part in inner:
            yield from values_of(part)
    elif origin is Literal:
        yield from inner
    elif hint in (None, type(None)):
        yield None
    elif origin is dict or hint is dict:
        yield from ({}, {"init_args": None}, {"init_args": {}}, {"x": []}, {"": ""})
    elif origin is tuple and inner[-1] is not ...:
        columns = [list(values_of(part)) for part in inner]
        yield from zip(*columns, strict=False)
    elif (origin is not None and issubclass(origin, list | tuple)) or origin.__class__.__name__ == "ABCMeta":
        yield ()
        for value in values_of(inner[0]):
            yield (value,)
            yield (value, value)
    elif hint in ODD:
        yield from ODD[hint]


@pytest.mark.parametrize("kind", SETTINGS.values(), ids=SETTINGS)
def test_odd_values_are_taken_or_one_line(kind: type) -> None:
    hints = get_type_hints(kind)
    missing = dataclasses.MISSING
    without = [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]
    required = REQUIRED.get(kind.__name__) or dict.fromkeys(without, "x")
    kind(**required)
    for field in dataclasses.fields(kind):
        for value in values_of(hints[field.name]):
            said = ""
            try:
                kind(**{**required, field.name: value})
            except UserError as error:
                said = str(error)
            assert "\n" not in said, (field.name, value)
            assert len(said) < 1000, (field.name, value)
