"""`training.json` and bridges given as JSON: the same settings back, or one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from scone_pl.checkpoints.training_record import bridge_from, read_record, steps_of
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig

ODD = [None, True, "x", "8", [], {}, -1, 0.5, 10**400, float("nan"), float("inf")]


@pytest.mark.parametrize(
    "bridge", [BridgeConfig(), BridgeConfig(mode="soft", quantile=0.3, hide_references_early=True)]
)
def test_a_recorded_bridge_comes_back(bridge: BridgeConfig) -> None:
    assert bridge_from(json.loads(json.dumps(dataclasses.asdict(bridge))), "x") == bridge


def test_what_a_choice_may_be_is_said() -> None:
    with pytest.raises(UserError, match="otsu or gap or null"):
        bridge_from({"adaptive_threshold": "mean"}, "source")


def test_odd_settings_are_refused_or_of_the_right_type() -> None:
    for name, default in dataclasses.asdict(BridgeConfig()).items():
        for value in ODD:
            message = None
            try:
                found = getattr(bridge_from({name: value}, "source"), name)
            except UserError as error:
                message = str(error)
            if message is None:
                assert found == value
                assert type(value) is type(default) or (name in ("quantile", "threshold", "temperature"))
                assert not isinstance(value, str | list | dict)
            else:
                assert message.startswith("source: ")
                assert "\n" not in message
    for values in (None, [], "x", 3, {"no such": 1}):
        with pytest.raises(UserError, match="source: "):
            bridge_from(values, "source")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"steps": null}', '{"steps": "7"}', '{"steps": -1}', "\xff"]
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    assert read_record(tmp_path) == {}
    assert steps_of(tmp_path) == 0
    (tmp_path / "training.json").write_text('{"steps": 7}')
    assert steps_of(tmp_path) == 7
    (tmp_path / "training.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"training\.json: ") as error:
        steps_of(tmp_path)
    assert "\n" not in str(error.value)
