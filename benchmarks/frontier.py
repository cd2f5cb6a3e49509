"""Score against time of sampling, in the mini-world: settings with fewer passes, compared with the published ones.

    python benchmarks/frontier.py runs/mini/stage2/guidance/weights --output docs/sampling_frontier

Every checkpoint folder draws the same test episodes from the same noise with every setting; its own bridge is used. The
difference in the overall score (mean of COM and DIS) is paired by episode; its interval is of 1000 bootstrap samples of
the episodes of each task, so it says what another draw of episodes would change, not another training. Time is CPU time
of one thread over that of the published settings. Writes OUTPUT.json and OUTPUT.png, prints a table.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from scone_pl.evaluation.scores import item_scores
from scone_pl.files import write_json
from scone_pl.image_files import write_figure
from scone_pl.markdown import markdown_table
from scone_pl.sampling.settings import SamplingConfig, StepCacheConfig
from scone_pl.worlds.evaluate import bridge_of, evaluate
from scone_pl.worlds.shapes.world import fixed_set

SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "24 steps": {"num_inference_steps": 24},
    "16 steps": {"num_inference_steps": 16},
    "8 steps": {"num_inference_steps": 8},
    "every second step": {"step_cache": StepCacheConfig(interval=2)},
    "preset fast (every third step)": {"preset": "fast"},
    "every fifth step": {"step_cache": StepCacheConfig(interval=5)},
    "guidance branches in every second step": {"unconditional_batch_skip_range": 2},
    "fast, guidance branches in every second": {"preset": "fast", "unconditional_batch_skip_range": 2},
    "fast, blocked tokens dropped": {"preset": "fast", "drop": True},
    "blocked tokens dropped": {"drop": True},
    "24 steps, blocked tokens dropped": {"num_inference_steps": 24, "drop": True},
    "8 steps, blocked tokens dropped": {"num_inference_steps": 8, "drop": True},
    "guidance up to 0.8": {"guidance_interval": (0.0, 0.8)},
    "24 steps, guidance up to 0.8": {"num_inference_steps": 24, "guidance_interval": (0.0, 0.8)},
    "8 steps, guidance up to 0.8": {"num_inference_steps": 8, "guidance_interval": (0.0, 0.8)},
    "shift 1": {"timestep_shift": 1.0},
    "24 steps, shift 1": {"num_inference_steps": 24, "timestep_shift": 1.0},
    "8 steps, shift 1": {"num_inference_steps": 8, "timestep_shift": 1.0},
    "24 steps, shift 6": {"num_inference_steps": 24, "timestep_shift": 6.0},
    "8 steps, shift 6": {"num_inference_steps": 8, "timestep_shift": 6.0},
}
"""Fields of `SamplingConfig`; `drop`: tokens with a similarity below 0 leave the network, instead of the own bias.

What is expected of the rows from "blocked tokens dropped" on, which have not been measured:

- Dropping saves no pass, so its time is that of the cached context's keys alone, and its score that of the hard bridge.
- With shift 3 two steps in five are above t = 0.8 (21 of 49), so an interval up to 0.8 takes 0.7 of the time at any
  number of steps, and gains score in this world, as leaving guidance out does (experiments/studies/sampling.yaml).
- The shift costs no time. Fewer steps near noise (shift 1) lose distinction at 8 steps, where layout is decided in the
  first few, and nothing at 24; shift 6 loses detail, so composition, at 8.
"""
Scores = dict[tuple[int, str], dict[str, Any]]
"""(number of the weights, key of the episode) -> its task, COM, and DIS if the task has it."""


def measure(folders: Sequence[Path], per_task: int, settings: Mapping[str, Any]) -> tuple[Scores, float]:
    """Scores of all episodes with all weights, and CPU seconds."""
    changes, seconds = dict(settings), 0.0
    scores: Scores = {}
    drop = changes.pop("drop", False)
    for number, folder in enumerate(folders):
        bridge = bridge_of(folder)
        if drop and bridge is not None:
            bridge = dataclasses.replace(bridge, mode="hard", threshold=0.0, drop_blocked=True)
        config = SamplingConfig(bridge=bridge, **changes)
        report, _ = evaluate(folder, fixed_set(per_task), config, progress=False)
        seconds += report["cpu_seconds"]
        scores |= {(number, item["key"]): {"task": item["task_type"], **item_scores(item)} for item in report["items"]}
    return scores, seconds


def means(scores: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """COM, DIS and their mean; tasks weigh the same."""
    by_task: dict[str, dict[str, list[float]]] = {"COM": defaultdict(list), "DIS": defaultdict(list)}
    for score in scores:
        for name in by_task.keys() & score.keys():
            by_task[name][score["task"]].append(score[name])
    com, dis = (np.mean([np.mean(values) for values in by_task[name].values()]) for name in ("COM", "DIS"))
    return np.array([com, dis, (com + dis) / 2])


def interval(scores: Scores, reference: Scores, samples: int = 1000) -> tuple[float, float]:
    """95 % interval of the difference in the overall score."""
    episodes: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(lambda: defaultdict(list))
    for at in scores:
        episodes[str(scores[at]["task"])][at[1]].append(at)
    random, differences = np.random.default_rng(0), []
    for _ in range(samples):
        drawn = [
            at
            for keys in episodes.values()
            for i in random.integers(0, len(keys), len(keys))
            for at in list(keys.values())[i]
        ]
        both = (means(source[at] for at in drawn) for source in (scores, reference))
        differences.append(float(np.subtract(*both)[2]))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The differences over time."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="0.8", linewidth=1)
    for row in rows:
        error = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        axes.errorbar(row["time"], row["difference"], yerr=error, marker="o", capsize=3, label=row["name"])
    axes.set_xlabel("CPU time / published settings")
    axes.set_ylabel("overall score - published settings")
    axes.legend(fontsize=7)
    write_figure(figure, file, dpi=110)


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="+", help="checkpoint folders of the mini-world")
    parser.add_argument("--per-task", type=int, default=24, help="episodes of each task (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/sampling_frontier"), help="without extension")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = {name: measure(options.weights, options.per_task, given) for name, given in SETTINGS.items()}
    write(measured, options.output)


def write(measured: Mapping[str, tuple[Scores, float]], output: Path) -> None:
    """JSON, plot and table of what `measure` gave for each setting, the reference first."""
    reference, seconds = next(iter(measured.values()))
    rows: list[dict[str, Any]] = []
    for name, (scores, spent) in measured.items():
        com, dis, overall = (float(value) for value in means(scores.values()))
        difference = overall - float(means(reference.values())[2])
        low, high = interval(scores, reference)
        row = {"COM": com, "DIS": dis, "overall": overall, "difference": difference, "low": low, "high": high}
        rows.append({"name": name, **row, "time": spent / seconds, "scores": len(scores)})
    write_json({"rows": rows}, output.with_suffix(".json"))
    draw(rows, output.with_suffix(".png"))
    cells = [
        [
            row["name"],
            f"{row['time']:.2f}",
            *(f"{row[score]:.2f}" for score in ("COM", "DIS", "overall")),
            f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})",
        ]
        for row in rows
    ]
    print(markdown_table(["sampling", "time", "COM", "DIS", "overall", "difference (95 %)"], cells))


if __name__ == "__main__":
    main()
