"""`SamplingConfig` refuses what makes no sense; old names of its fields keep working."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

from scone_pl import deprecated
from scone_pl.errors import UserError
from scone_pl.sampling.settings import SamplingConfig, StepCacheConfig

NUMBERS = ("guidance_scale", "image_guidance_scale", "guidance_rescale_min", "timestep_shift")
INTEGERS = ("num_inference_steps", "height", "width", "seed")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, "4", None, True, [4.0]])
def test_numbers_are_finite_and_in_range(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=re.escape(f"{name} is ")):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize("name", [*INTEGERS, "unconditional_batch_skip_range"])
@pytest.mark.parametrize("value", [-1, 1.5, "8", True, math.nan, 2**70])
def test_integers_are_whole_and_in_range(name: str, value: Any) -> None:
    if value == 2**70 and name not in ("seed", "unconditional_batch_skip_range"):
        pytest.skip("an upper limit is the checkpoint's")
    with pytest.raises(UserError, match=f"{name} is .* must be a whole number"):
        SamplingConfig(**{name: value})


@pytest.mark.parametrize("value", [(0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.0, math.nan), (0.0,), (0, 1, 2), "01", None])
def test_an_interval_is_two_ordered_numbers(value: Any) -> None:
    with pytest.raises(UserError, match="guidance_interval"):
        SamplingConfig(guidance_interval=value)


def test_other_settings() -> None:
    with pytest.raises(UserError, match="must be one of global"):
        SamplingConfig(guidance_rescale="local")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(UserError, match="more than 0"):
        SamplingConfig(timestep_shift=0.0)
    with pytest.raises(UserError, match="set guidance_scale above 1"):
        SamplingConfig(guidance_scale=1.0)
    with pytest.raises(UserError, match="must be one of published, fast"):
        SamplingConfig(preset="faster")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(UserError, match="unconditional_batch_skip_range 2 acts only with guidance"):
        SamplingConfig(guidance_scale=1.0, image_guidance_scale=1.0, unconditional_batch_skip_range=2)
    for given in ({"interval": 0}, {"order": -1}, {"interval": 1.5}, {"order": True}):
        with pytest.raises(UserError, match="must be a whole number, at least"):
            StepCacheConfig(**given)  # type: ignore[arg-type]  # on purpose
    assert SamplingConfig(guidance_interval=[0, 1]).guidance_interval == (0, 1)  # type: ignore[arg-type]  # as in YAML


def test_every_new_name_is_a_field() -> None:
    fields = {field.name for field in dataclasses.fields(SamplingConfig)}
    assert set(deprecated.ARGUMENTS.values()) <= fields
    assert {new.removeprefix("sampling.") for new in deprecated.RECIPE.values()} <= fields
    assert not fields & set(deprecated.ARGUMENTS)


OLD = {
    "sampling_seed": 5,
    "height": 32,
    "width": None,
    "sampling": {"num_inference_steps": 3, "guidance": {"text_scale": 1.0, "image_scale": 1.0, "interval": [0, 1]}},
}
NEW = {
    "sampling": {
        "num_inference_steps": 3,
        "seed": 5,
        "height": 32,
        "width": None,
        "guidance_scale": 1.0,
        "image_guidance_scale": 1.0,
        "guidance_interval": [0, 1],
    }
}


def test_old_keys_of_recipes_keep_working(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecated, "_warned", set())
    recipe = {"model": {"init_args": OLD}, "chain": [{"name": "a", "model": {"init_args": {"height": 8}}}]}
    with caplog.at_level("WARNING", "scone_pl"):
        renamed = deprecated.rename_keys(recipe)
        assert deprecated.rename_keys(recipe) == renamed
    assert renamed["model"]["init_args"] == NEW
    assert renamed["chain"][0]["model"]["init_args"] == {"sampling": {"height": 8}}
    assert "guidance" in recipe["model"]["init_args"]["sampling"], "the given mapping stays as it is"  # type: ignore[index]  # nested mappings are object
    lines = [record.getMessage() for record in caplog.records]
    warning = "model.init_args.sampling_seed is deprecated; write model.init_args.sampling.seed"
    assert lines.count(warning) == 1
    assert deprecated.rename_keys(renamed) == renamed
    data = {"data": {"max_skipped_share": 0.1}, "chain": [{"name": "a", "data": {"max_skipped_share": 0}}]}
    expected = {"data": {"max_skipped_fraction": 0.1}, "chain": [{"name": "a", "data": {"max_skipped_fraction": 0}}]}
    assert deprecated.rename_keys(data) == expected
    assert [deprecated.rename_keys(other) for other in (None, [1], "x")] == [None, [1], "x"]


def test_an_old_and_a_new_name_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"sampling_seed is sampling\.seed now, and both are given"):
        deprecated.rename_settings({"sampling_seed": 1, "sampling": {"seed": 2}})
    with pytest.raises(UserError, match="both are given"):
        deprecated.rename_arguments({"text_guidance_scale": 1.0, "guidance_scale": 2.0})


def test_old_options_keep_working() -> None:
    typed = ["--model.init_args.sampling_seed=4", "--model.sampling.guidance.text_scale", "2", "--height", "8"]
    assert deprecated.rename_options(typed, "fit", recipe=True) == [
        *("--model.init_args.sampling.seed=4", "--model.sampling.guidance_scale", "2", "--height", "8"),
    ]
    assert deprecated.rename_options(["--data.max_skipped_share=0"], "fit", recipe=True) == [
        "--data.max_skipped_fraction=0"
    ]
    typed = ["--bridge_picture=a", "--", "--bridge_picture"]
    assert deprecated.rename_options(typed, "generate") == ["--bridge_image=a", "--", "--bridge_picture"]
