"""What the commands of all worlds have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole
from scone_pl.worlds.episode import Episode

MAX_SAMPLES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Options of `evaluate` in every world."""

    checkpoint: Path
    """Folder of weights."""
    output: Path
    """Folder for scores.json and images.png."""
    per_task: int = 40
    """Episodes of each of the six tasks."""
    stream: Literal["validation", "test"] = "test"
    """Which episodes: validation for choosing, test for reporting."""
    num_inference_steps: int = 12
    """Euler steps."""
    timestep_shift: float = 1.0
    """Spends more steps near noise if over 1."""
    mask: Literal["trained", "off"] = "trained"
    """trained = the bridge as the weights' own stage had it; off = sample without."""
    progress: bool = True
    """Whether to show progress bars."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Options of `contact_sheet` in every world."""

    per_task: int = 4
    """Episodes of each task."""
    seed: int = 0
    """Seed of the world."""
    stream: str = "base"
    """base, refined, multi, validation, test, questions, plain, or the wide of mini."""


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


def draw_sheet(
    settings: Sheet,
    output: Path,
    scale: int,
    streams: Sequence[str],
    sampler: Callable[[], Callable[[str, int], Episode]],
) -> None:
    """Draws the first episodes of every task into one image, enlarged `scale` times.

    Args:
        settings: which episodes.
        output: image file.
        scale: of each pixel.
        streams: the world's.
        sampler: returns `sample` of the world; called once all options are checked.
    """
    from scone_pl.image_files import check_image_output, write_image
    from scone_pl.worlds.contact_sheet import contact_sheet

    check_whole("--seed", settings.seed)
    check_whole("--per_task", settings.per_task, minimum=1, maximum=1000)
    check_whole("--scale", scale, minimum=1, maximum=1000)
    if settings.stream not in streams:
        raise UserError(f"--stream is {settings.stream!r:.80}; choose from {', '.join(streams)}")
    check_image_output(output, "--output")
    sample = sampler()
    rows = [[sample(task, index) for index in range(settings.per_task)] for task in SCONEEVAL_TASKS]
    write_image(contact_sheet(rows, scale), output)
    print(f"{output}: {settings.per_task} episodes of each of {len(SCONEEVAL_TASKS)} tasks")


def score(settings: Scoring, episodes: Callable[[], Sequence[Episode]]) -> None:
    """Samples `episodes`, has them judged, and writes scores.json and images.png."""
    from scone_pl.checkpoints.folder import read_config
    from scone_pl.files import write_json
    from scone_pl.sampling.settings import SamplingConfig
    from scone_pl.sampling.visualize import save_image
    from scone_pl.worlds.evaluate import bridge_of, evaluate, score_table
    from scone_pl.worlds.gallery import gallery

    check_whole("--per_task", settings.per_task, minimum=1, maximum=MAX_SAMPLES)
    sampling = SamplingConfig(
        num_inference_steps=settings.num_inference_steps,
        timestep_shift=settings.timestep_shift,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
    )
    checkpoint, output = settings.checkpoint, settings.output
    check_output_folder(output, files=("scores.json", "images.png"))
    config = replace(sampling, bridge=bridge_of(checkpoint) if settings.mask == "trained" else None)
    config.check_bridge(read_config(checkpoint).decoder.num_layers, samples=True)
    report, drawn = evaluate(checkpoint, episodes(), config, progress=settings.progress)
    write_json(report, output / "scores.json")
    save_image(gallery(drawn, per_task=2), output / "images.png")
    print(score_table({str(checkpoint): report}))
    print(f"scores: {output / 'scores.json'}   images: {output / 'images.png'}")
