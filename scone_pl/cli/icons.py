"""`icons`: commands of world 2, natural subjects off the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from scone_pl.cli.worlds import MAX_SAMPLES, Scoring, Sheet, draw_sheet, score, write_sets
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_file, check_output_folder
from scone_pl.ranges import check_whole
from scone_pl.worlds.icons.contacts import grounded
from scone_pl.worlds.icons.shards import write_icons
from scone_pl.worlds.icons.world import STREAMS, IconsConfig, IconWorld, fixed_set


def shards(
    output: Path = Path("data_shards/icons"),
    questions: int = 20_000,
    plain: int = 8_000,
    base_single: int = 8_000,
    refined_single: int = 3_000,
    multi_candidate: int = 8_000,
    contacts: int = 4_000,
    validation: int = 240,
    seed: int = 0,
    world: IconsConfig = IconsConfig(),  # noqa: B008 - frozen
    samples_per_shard: int = 5000,
    progress: bool = True,
) -> None:
    """Write the training and validation sets of world 2; a set that exists already is left unchanged.

    Args:
        output: Folder in which each set gets a folder of its name.
        questions: Samples of the set of captions, questions and answers, for the base.
        plain: Samples of the set of plain generation, for the base.
        base_single: Samples of the base single-candidate set; 0 leaves a set out.
        refined_single: Samples of the refined single-candidate set.
        multi_candidate: Samples of the multi-candidate set.
        contacts: Samples of the set whose targets all have a ground, with subjects at every depth of it.
        validation: Samples of the validation set.
        seed: Seed of the world.
        world: sizes, difficulty and atlas.
        samples_per_shard: Samples in one tar file.
        progress: Whether to show progress bars.
    """
    if contacts:
        grounded(world)
    sizes = {
        "questions": questions,
        "plain": plain,
        "base_single": base_single,
        "refined_single": refined_single,
        "multi_candidate": multi_candidate,
        "contacts": contacts,
        "validation": validation,
    }
    write_sets(
        output,
        sizes,
        lambda name, samples: write_icons(
            output / name,
            name,
            samples,
            seed=seed,
            config=world,
            samples_per_shard=samples_per_shard,
            progress=progress,
        ),
        seed=seed,
        samples_per_shard=samples_per_shard,
    )


def contact_sheet(
    settings: Sheet,
    output: Path = Path("icons.png"),
    scale: int = 4,
    world: IconsConfig = IconsConfig(),  # noqa: B008 - frozen
) -> None:
    """Draw a few episodes of every task into one image.

    Args:
        settings: which episodes.
        output: Image file to write; .png, .jpg, .jpeg or .webp decides the format.
        scale: How many times each pixel is enlarged.
        world: sizes, difficulty and atlas.
    """
    draw_sheet(settings, output, scale, STREAMS, lambda: IconWorld(settings.seed, world, settings.stream).sample)


def base(
    output: Path = Path("runs/icons/random"),
    preset: Literal["icons", "icons_large"] = "icons",
    contrastive_steps: int = 0,
    seed: int = 0,
    world: IconsConfig = IconsConfig(),  # noqa: B008 - frozen
    progress: bool = True,
) -> None:
    """Write a checkpoint folder for the base's training: the trained autoencoder, everything else random.

    Args:
        output: The folder.
        preset: Sizes of the model: icons for a canvas of 32 pixels, icons_large for one of 64.
        contrastive_steps: Steps of 64 images in which ViT, connector and words are pretrained with captions,
            from the middle on with instructions too; 0 = none.
        seed: Seed of the weights, and of the images of contrastive pretraining.
        world: The atlas, whose names the vocabulary has (others are spelled), and what contrastive pretraining draws.
        progress: Whether to show progress bars.
    """
    from scone_pl.worlds.icons.base import write_base

    check_whole("--seed", seed)
    check_whole("--contrastive_steps", contrastive_steps, maximum=MAX_SAMPLES)
    if not contrastive_steps and world != IconsConfig(atlas=world.atlas):
        raise UserError("--world: without --contrastive_steps nothing is drawn, so only its atlas has an effect")
    written = write_base(
        output, preset=preset, config=world, contrastive_steps=contrastive_steps, seed=seed, progress=progress
    )
    print(f"{output}: weights of preset {preset}, {'written' if written else 'already there'}")


def autoencoder(
    output: Path, steps: int = 5000, images: int = 12_000, batch_size: int = 16, seed: int = 0, progress: bool = True
) -> None:
    """Train the autoencoder that ships with world 2 again.

    Args:
        output: .safetensors file to write, every 250 steps.
        steps: Optimizer steps.
        images: Training images.
        batch_size: Images of a step.
        seed: Seed of weights, images and their order.
        progress: Whether to show a progress bar.
    """
    from scone_pl.worlds.icons.autoencoder import train

    for name, value in {"steps": steps, "images": images, "batch_size": batch_size}.items():
        check_whole(f"--{name}", value, minimum=1, maximum=MAX_SAMPLES)
    check_whole("--seed", seed)
    check_output_file(output)
    quality = train(output, steps=steps, images=images, batch=batch_size, seed=seed, progress=progress)
    print(f"{output}: {quality:.1f} dB on 256 other images")


def evaluate(settings: Scoring, world: IconsConfig = IconsConfig()) -> None:  # noqa: B008 - frozen
    """Sample the fixed test episodes with a checkpoint's weights and score them with the judge.

    Args:
        settings: the evaluation.
        world: sizes, difficulty and atlas.
    """
    score(settings, lambda: fixed_set(settings.per_task, stream=settings.stream, config=world))


def judge(
    output: Path = Path("docs/icons/judge.json"),
    per_task: int = 20,
    stream: Literal["validation", "test"] = "test",
    world: IconsConfig = IconsConfig(),  # noqa: B008 - frozen
    progress: bool = True,
) -> None:
    """Measure the judge's error rates on rendered answers with known faults.

    Args:
        output: JSON file to write.
        per_task: Episodes of each of the six tasks.
        stream: Which episodes: thresholds were set on validation.
        world: sizes, difficulty and atlas.
        progress: Whether to show a progress bar.
    """
    from scone_pl.files import write_json
    from scone_pl.worlds.icons.faults import table, verdicts

    check_whole("--per_task", per_task, minimum=1, maximum=MAX_SAMPLES)
    check_output_file(output)
    rows = verdicts(fixed_set(per_task, stream=stream, config=world), progress=progress)
    write_json({"per_task": per_task, "stream": stream, "faults": rows}, output)
    print(table(rows))


def label_images(
    checkpoint: Path,
    output: Path,
    per_task: int = 20,
    world: IconsConfig = IconsConfig(),  # noqa: B008 - frozen
    progress: bool = True,
) -> None:
    """Draw images for a person to label, so that the judge can be compared with people (`icons agreement`).

    Args:
        checkpoint: Folder of weights that draw.
        output: Folder for images.png, and for labels.json, whose `verdict` and `chosen` are to be filled in.
        per_task: Validation episodes of each of the six tasks.
        world: sizes, difficulty and atlas.
        progress: Whether to show a progress bar.
    """
    from scone_pl.checkpoints.model import from_pretrained
    from scone_pl.data.tokenizer import Tokenizer
    from scone_pl.sampling.settings import SamplingConfig
    from scone_pl.worlds.evaluate import bridge_of, draw
    from scone_pl.worlds.icons.labels import IMAGES, LABELS, write_images

    check_whole("--per_task", per_task, minimum=1, maximum=MAX_SAMPLES)
    check_output_folder(output, files=(LABELS, IMAGES))
    if (output / LABELS).exists():
        raise UserError(f"{output / LABELS} exists; choose another --output")
    sampling = SamplingConfig(
        num_inference_steps=12,
        timestep_shift=1.0,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
        bridge=bridge_of(checkpoint),
    )
    episodes = fixed_set(per_task, stream="validation", config=world)
    drawn = draw(from_pretrained(checkpoint), Tokenizer.from_folder(checkpoint), episodes, sampling, progress=progress)
    write_images(drawn, world, output)
    print(f"{output}: {len(drawn)} images; fill in `verdict` and `chosen` of {LABELS}")


def agreement(labels: Path = Path("docs/icons/labels")) -> None:
    """Compare the judge with labels that a person gave.

    Args:
        labels: Folder as `icons label_images` writes it, with its labels filled in.
    """
    from scone_pl.worlds.icons.labels import LABELS, agreement, read_labels, table

    result = agreement(read_labels(labels))
    if not result["verdicts"]:
        raise UserError(f"{labels / LABELS}: no image has a verdict yet; fill in `verdict` and `chosen`")
    print(table(result))
