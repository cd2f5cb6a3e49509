"""What a run logs about itself."""

from __future__ import annotations

import dataclasses
import mmap
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_helpers import EVERYTHING, TWO_REFERENCES, make_pack, tiny_model
from running import run_scone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scone_pl.model.config import BridgeConfig
from scone_pl.model.flops import count_tokens, step_flops
from scone_pl.training.losses import flow_matching
from scone_pl.training.monitoring import PHASES, Interval, Monitoring, mark, resident_memory, seconds_between
from scone_pl.training.parts import set_trainable

ARGS = [
    *("fit", "--config", "experiments/mini/stage2.yaml", "--chain", "null"),
    *("--model.init_args.init_from", "runs/mini/base", "--trainer.max_steps", "4"),
    *("--trainer.log_every_n_steps", "2", "--trainer.accumulate_grad_batches", "2", "--data.num_workers", "0"),
    *("--data.packing.token_budget", "600", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2"),
]


@pytest.fixture(scope="module")
def logged(mini_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[int, float]], str]:
    """Scalars of a run by name and step, and what it printed."""
    folder = tmp_path_factory.mktemp("monitoring")
    done = run_scone(*ARGS, "--monitoring.peak_tflops", "0.05", "--output_dir", str(folder), cwd=mini_world)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in names}, done.stderr


def test_names_and_steps(logged: tuple[dict[str, dict[int, float]], str]) -> None:
    """Once per two optimizer steps, whatever the number of packs."""
    scalars, printed = logged
    expected = {"speed/tokens_per_second", "speed/samples_per_second", "speed/step_seconds", "speed/mfu"}
    expected |= {f"speed/{phase}_seconds" for phase in PHASES} | {"memory/host_resident_gb", "train/lr"}
    expected |= {"gradient/norm", "gradient/understanding", "gradient/connector", "data/seen"}
    assert expected <= scalars.keys()
    for name in expected:
        assert list(scalars[name]) == [1, 3], name
    assert list(scalars["val/loss"]) == [1, 3], "intervals count optimizer steps"
    assert "gradient/generation" not in scalars, "it does not train in bridge formation"
    for text in ("training: step 4 of 4", "loss ", "norm ", "tokens_per_second "):
        assert text in printed


def test_values_agree_with_each_other(logged: tuple[dict[str, dict[int, float]], str]) -> None:
    scalars, _ = logged
    for step in (1, 3):
        seconds = scalars["speed/step_seconds"][step]
        phases = [scalars[f"speed/{phase}_seconds"][step] for phase in PHASES]
        assert all(phase >= 0 for phase in phases)
        assert 0.2 * seconds < sum(phases) < 1.05 * seconds
        tokens = scalars["speed/tokens_per_second"][step] * seconds
        assert 500 < tokens < 2 * 600 + 1, "two packs a step"
        assert scalars["speed/mfu"][step] > 0
        group = [scalars[f"gradient/{name}"][step] for name in ("understanding", "connector")]
        assert scalars["gradient/norm"][step] == pytest.approx(sum(norm**2 for norm in group) ** 0.5, rel=1e-5)
        assert 0.1 < scalars["memory/host_resident_gb"][step] < 10


BRIDGE = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=2)


@pytest.mark.parametrize("bridge", [None, BRIDGE, dataclasses.replace(BRIDGE, drop_blocked=True)])
def test_counted_flops_are_those_of_the_pack(bridge: BridgeConfig | None) -> None:
    model, pack = tiny_model().train(), make_pack(TWO_REFERENCES, *EVERYTHING)
    trained = ("understanding", "generation")
    set_trainable(model, trained)
    monitoring = Monitoring()
    settings = SimpleNamespace(trainable=trained, lora=None, bridge=bridge)
    module = SimpleNamespace(network=SimpleNamespace(config=model.config), settings=settings)
    model.register_forward_hook(monitoring._flop_counter(module))
    clean = model.encode_images(pack)
    result = flow_matching(model, pack, clean, torch.ones_like(clean), bridge=bridge)
    blocked = None
    if bridge is not None:
        blocked = result.output.bridge.blocked
        assert blocked.any()
    interval = monitoring._interval
    values = interval.flops - sum(int(spared) for spared in interval.saved_flops)
    assert values == step_flops(model.config, count_tokens(pack, 4, bridge, blocked), trained).total
    with torch.no_grad():
        flow_matching(model, pack, clean, torch.ones_like(clean), bridge=bridge)
    assert interval.flops == step_flops(model.config, count_tokens(pack, 4), trained).total, "training passes alone"


def test_spans_are_a_step_s_mean() -> None:
    interval = Interval(steps=2)
    interval.spans["forward"] = [(0.0, 1.0), (5.0, 6.0)]
    interval.spans["data"] = [(1.0, 1.5)]
    assert interval.seconds() == {"data": 0.25, "forward": 1.0, "backward": 0, "optimizer": 0, "checkpoint": 0}
    start = mark(torch.device("cpu"))
    time.sleep(0.01)
    assert 0.01 <= seconds_between(start, mark(torch.device("cpu"))) < 5


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_memory()
    # Pages of its own: an allocator may serve even 200 MB from memory that earlier tests freed and left resident.
    with mmap.mmap(-1, 200_000_000) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert resident_memory() - before > 150e6
