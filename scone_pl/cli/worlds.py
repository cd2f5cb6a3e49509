"""What the commands of all worlds have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole
from scone_pl.worlds.episode import Episode

MAX_SAMPLES = 100_000_000


def write_sets(
    output: Path, sizes: Mapping[str, int], write: Callable[[str, int], object], *, seed: int, samples_per_shard: int
) -> None:
    """Writes data sets and says which were there already.

    Args:
        output: in which each set gets a folder of its name.
        sizes: name -> number of samples; 0 leaves a set out.
        write: writes a set of a name and a size; None if it was there.
        seed: checked.
        samples_per_shard: checked.
    """
    for name, samples in sizes.items():
        check_whole(f"--{name}", samples, maximum=MAX_SAMPLES)
    check_whole("--seed", seed)
    check_whole("--samples_per_shard", samples_per_shard, minimum=1)
    check_output_folder(output, folders=[name for name, samples in sizes.items() if samples])
    for name, samples in sizes.items():
        if samples:
            state = "already there" if write(name, samples) is None else "written"
            print(f"{output / name}: {samples} samples, {state}")


def draw_sheet(sample: Callable[[str, int], Episode], output: Path, per_task: int, scale: int) -> None:
    """Draws the first `per_task` episodes of every task into one image, enlarged `scale` times."""
    from scone_pl.image_files import check_image_output, write_image
    from scone_pl.worlds.contact_sheet import contact_sheet

    check_whole("--per_task", per_task, minimum=1, maximum=1000)
    check_whole("--scale", scale, minimum=1, maximum=1000)
    check_image_output(output, "--output")
    rows = [[sample(task, index) for index in range(per_task)] for task in SCONEEVAL_TASKS]
    write_image(contact_sheet(rows, scale), output)
    print(f"{output}: {per_task} episodes of each of {len(SCONEEVAL_TASKS)} tasks")


def score(
    checkpoint: Path,
    output: Path,
    episodes: Callable[[], Sequence[Episode]],
    *,
    num_inference_steps: int,
    timestep_shift: float,
    mask: Literal["trained", "off"],
    progress: bool,
) -> None:
    """Samples `episodes`, has them judged, and writes scores.json and images.png."""
    from scone_pl.checkpoints.folder import read_config
    from scone_pl.files import write_json
    from scone_pl.sampling.settings import SamplingConfig
    from scone_pl.sampling.visualize import save_image
    from scone_pl.worlds.evaluate import bridge_of, evaluate, score_table
    from scone_pl.worlds.gallery import gallery

    settings = SamplingConfig(
        num_inference_steps=num_inference_steps,
        timestep_shift=timestep_shift,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
    )
    check_output_folder(output, files=("scores.json", "images.png"))
    config = dataclasses.replace(settings, bridge=bridge_of(checkpoint) if mask == "trained" else None)
    config.check_bridge(read_config(checkpoint).decoder.num_layers)
    report, drawn = evaluate(checkpoint, episodes(), config, progress=progress)
    write_json(report, output / "scores.json")
    save_image(gallery(drawn, per_task=2), output / "images.png")
    print(score_table({str(checkpoint): report}))
    print(f"scores: {output / 'scores.json'}   images: {output / 'images.png'}")
