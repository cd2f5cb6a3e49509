"""Options that act only together with others are refused without them, not ignored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.data.selection import ConvertConfig
from scone_pl.errors import UserError
from scone_pl.evaluation.benchmarks import find_benchmark
from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.evaluation.steps import check_judge
from scone_pl.model.config import BridgeConfig
from scone_pl.model.lora import LoRAConfig
from scone_pl.sampling.plan import bridge_setting
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.training.ema import EMAConfig
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.monitoring import Monitoring
from scone_pl.training.saving import Saving
from scone_pl.training.settings import StageSettings


def stage(**settings: Any) -> StageSettings:
    return StageSettings(**{"init_from": "x", "trainable": ("understanding",), **settings})


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("mask_sampling", lambda: stage(mask_sampling=True)),
        (
            "sampling.bridge",
            lambda: stage(mask_sampling=True, bridge=BridgeConfig(), sampling=SamplingConfig(bridge=BridgeConfig())),
        ),
        (
            "attention_rebalancing",
            lambda: stage(mask_sampling=True, bridge=BridgeConfig(), sampling=SamplingConfig(attention_rebalancing={})),
        ),
        ("lora", lambda: stage(trainable=("connector",), lora=LoRAConfig())),
        ("ema.export", lambda: stage(ema=EMAConfig(export=False))),
        ("layers_kept", lambda: stage(layers_kept=1, activation_checkpointing=False)),
        ("peak_tflops", lambda: Monitoring(mfu=False, peak_tflops=1.0)),
        ("quality", lambda: ConvertConfig(quality=70)),
        ("only multi", lambda: ConvertConfig(kind="single", only="multi")),
        ("alignment.temperature", lambda: AlignmentConfig(temperature=0.2)),
        ("keep_every_n_steps", lambda: Saving(every_n_steps=500, keep_every_n_steps=700)),
        ("keep_every_n_steps", lambda: Saving(every_n_steps=0, keep_every_n_steps=700)),
        ("scene_pf", lambda: check_judge(JudgeConfig(scene_pf=True), find_benchmark("sconeeval"), [])),
        ("quality", lambda: ConvertConfig(quality=70, reencode="png")),
    ],
)
def test_settings_without_effect_are_refused(name: str, build: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=name):
        build()


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"temperature": 0.3}, ("temperature",)),
        ({"temperature": 0.3, "mode": "soft"}, ()),
        ({"quantile": 0.5, "threshold": 0.3}, ("threshold",)),
        ({"oracle": True, "threshold": 0.3, "source_layer": 2}, ("threshold", "source_layer")),
        ({"drop_blocked": True, "first_masked_layer": 12}, ("first_masked_layer",)),
        (
            {"apply_mask": False, "last_masked_layer": 12, "hide_references_early": True},
            ("last_masked_layer", "hide_references_early"),
        ),
        ({}, ()),
    ],
)
def test_settings_of_a_bridge_without_effect_are_named(settings: dict[str, Any], unused: tuple[str, ...]) -> None:
    assert BridgeConfig(**settings).without_effect == unused


def test_the_command_line_says_which_settings_of_a_bridge_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    bridge_setting("unused", '{"temperature": 0.3}')
    assert "--bridge: temperature has no effect" in caplog.text


def test_the_same_settings_pass_where_they_act() -> None:
    stage(mask_sampling=True, bridge=BridgeConfig())
    stage(lora=LoRAConfig(), ema=EMAConfig(export=False, decay=0.9), layers_kept=1)
    Monitoring(peak_tflops=1.0)
    ConvertConfig(quality=70, shrink=100)
    ConvertConfig(quality=70, reencode="webp")


def test_commands_refuse_options_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bridge = '{"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 2}'
    base = ["--checkpoint", f"{ROOT}/experiments/mini/base_weights", "--instruction", "draw the only star on red"]
    for args, name in (
        (["generate", *base, "--output", f"{tmp_path}/x.png", "--bridge", bridge], "--bridge"),
        (["mini", "base", "--output", f"{tmp_path}/b", "--preset", "mini_photo", "--canvas", "32"], "--canvas"),
        (["mini", "base", "--output", f"{tmp_path}/b", "--preset", "mini_neo", "--canvas", "32"], "--canvas"),
        (["mini", "base", "--output", f"{tmp_path}/b", "--preset", "mini", "--canvas", "15"], "--canvas 15: must be"),
    ):
        assert main(args) == 2
        assert f"error: {name}" in capsys.readouterr().err
