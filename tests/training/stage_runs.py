"""Ten steps of every stage in the mini-world, which several tests look at, and the losses recorded from them.

`python tests/training/stage_runs.py` records tests/golden/losses.json again, after a change that is supposed to
change training. `TOLERANCE` says how far another CPU's rounding may lead.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[1]))
from running import ROOT, run_scone

from scone_pl.worlds.shapes.base import write_base
from scone_pl.worlds.shapes.shards import WORLD_SETS, write_world

GOLDEN = ROOT / "tests/golden/losses.json"
RECORDED = ("train/loss", "train/flow", "train/text", "train/alignment", "bridge/blocked_fraction", "gradient/norm")
TOLERANCE = 1e-3
"""Relative. The same machine repeats its numbers exactly; AdamW's first steps turn rounding errors into differences."""

STEPS, SAVED = 10, 5  # an odd number of packs a rank: 2 a step must begin anew there
STAGES = ("composition", "formation", "guidance", "adapters")
SECOND_BASE, SECOND_START = "second_base", "runs/second/random"
"""A stage on SenseNova-U1, never in one chain with those of BAGEL, and the weights that it starts from."""
ARGS = [
    *("fit", "--config", "experiments/mini/stage2.yaml", "--config", "stages.json"),
    *("--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_val_batches", "0", "--data.packing.token_budget", "600", "--data.num_workers", "0"),
    *("--checkpoint.every_n_steps", str(SAVED), "--checkpoint.keep_last", "5"),
]
PARTS = {"trainable": ["understanding", "generation", "patch_embedder", "pixel_projections"]}
ONE_RANK = ["--trainer.accumulate_grad_batches", "2"]


def scalars(folder: Path, name: str) -> list[float]:
    """The logged values of a run, a step each."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    by_step = {event.step: event.value for event in events.Scalars(name)}
    assert sorted(by_step) == list(range(len(by_step)))
    return [by_step[step] for step in sorted(by_step)]


def logged_names(folder: Path) -> set[str]:
    """Names of all logged values of a run."""
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return set(events.Tags()["scalars"])


def write_stages(folder: Path, names: tuple[str, ...] = STAGES, steps: int = STEPS) -> None:
    """`stages.json`: stages as a chain, without a bridge, with a supervised, a soft and a hard one; some text."""
    bridge = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 5, "threshold": 0.4}
    common = {"bridge": bridge, "optimizer": {"lr": 1e-3, "warmup_steps": 5, "eps": 1e-6}}
    stages = (
        ("composition", "Composition", {"bridge": None, "mask_sampling": False}),
        ("formation", "BridgeFormation", {"alignment": {"weight": 0.5}, "text_loss_weight": 0.3}),
        ("guidance", "BridgeGuidance", {"bridge": {**bridge, "mode": "soft", "temperature": 0.1}}),
        ("adapters", "BridgeGuidance", {"lora": {"rank": 4}, "ema": {"decay": 0.5}}),
        (SECOND_BASE, "BridgeGuidance", {"bridge": {**bridge, "mode": "soft"}, "text_loss_weight": 0.3, **PARTS}),
    )
    shards = [{"path": f"data_shards/mini/{name}"} for name in ("refined_single", "multi_candidate", "questions")]
    chain = [
        {
            "name": name,
            "trainer": {"max_steps": steps},
            "data": {"train": shards},
            "model": {"class_path": f"scone_pl.training.stages.{stage}", "init_args": {**common, **settings}},
        }
        for name, stage, settings in stages
        if name in names
    ]
    start = SECOND_START if SECOND_BASE in names else "runs/mini/base"
    model = {"init_args": {"init_from": start, "alignment": {"weight": 0.0}}}
    (folder / "stages.json").write_text(json.dumps({"chain": chain, "model": model}))


def write_mini_world(folder: Path) -> None:
    """Shards and random base weights, where the mini recipes look for them."""
    for name, world_set in WORLD_SETS.items():
        write_world(folder / "data_shards/mini" / name, world_set, samples=120, progress=False)
    write_base(folder / "runs/mini/base")
    (folder / "experiments").symlink_to(ROOT / "experiments")


def recorded(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Stage -> name -> values of its steps, of those in `RECORDED` that it logs."""
    return {
        stage: {name: scalars(folder / stage, name) for name in RECORDED if name in logged_names(folder / stage)}
        for stage in STAGES
    }


def write_golden(values: dict[str, dict[str, list[float]]]) -> None:
    """Writes `values` as the golden ones, a line each."""
    lines = [
        json.dumps(stage)
        + ": {\n  "
        + ",\n  ".join(f"{json.dumps(n)}: [{_row(row)}]" for n, row in named.items())
        + "}"
        for stage, named in values.items()
    ]
    GOLDEN.write_text("{" + ",\n ".join(lines) + "}\n")


def _row(values: list[float]) -> str:
    return ", ".join(f"{value:.7g}" for value in values)


def main() -> None:
    """Records the golden losses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mini_world(folder)
        write_stages(folder)
        done = run_scone(*ARGS, *ONE_RANK, "--output_dir", str(folder / "out"), cwd=folder, timeout=1800)
        assert done.returncode == 0, done.stderr
        write_golden(recorded(folder / "out"))


if __name__ == "__main__":
    main()
