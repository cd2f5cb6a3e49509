"""`mini`: commands of the mini-world."""

from __future__ import annotations

from pathlib import Path

from scone_pl.cli.worlds import Scoring, Sheet, draw_sheet, score, write_sets
from scone_pl.errors import UserError
from scone_pl.ranges import check_whole
from scone_pl.worlds.shapes.shards import WORLD_SETS, write_world
from scone_pl.worlds.shapes.world import STREAMS, World, WorldConfig, fixed_set


def shards(
    output: Path = Path("data_shards/mini"),
    questions: int = 24_000,
    question_pairs: int = 12_000,
    plain: int = 16_000,
    base_single: int = 16_000,
    refined_single: int = 4_000,
    multi_candidate: int = 10_000,
    multi_wide: int = 0,
    validation: int = 240,
    seed: int = 0,
    world: WorldConfig = WorldConfig(),  # noqa: B008 - frozen
    samples_per_shard: int = 5000,
    progress: bool = True,
) -> None:
    """Write the training and validation sets of the mini-world; a set that exists already is left unchanged.

    Args:
        output: Folder in which each set gets a folder of its name.
        questions: Samples of the set of questions and answers, for the base.
        question_pairs: Samples of the set of questions about two references.
        plain: Samples of the set of plain generation, for the base.
        base_single: Samples of the base single-candidate set; 0 leaves a set out.
        refined_single: Samples of the refined single-candidate set.
        multi_candidate: Samples of the multi-candidate set.
        multi_wide: Samples of the set with other namings, more candidates and more references, which only
            robustness_trained needs (10000).
        validation: Samples of the validation set.
        seed: Seed of the world.
        world: Sizes and difficulty.
        samples_per_shard: Samples in one tar file.
        progress: Whether to show progress bars.
    """
    sizes = {
        "questions": questions,
        "question_pairs": question_pairs,
        "plain": plain,
        "base_single": base_single,
        "refined_single": refined_single,
        "multi_candidate": multi_candidate,
        "multi_wide": multi_wide,
        "validation": validation,
    }
    write_sets(
        output,
        sizes,
        lambda name, samples: write_world(
            output / name,
            WORLD_SETS[name],
            samples=samples,
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
    output: Path = Path("mini_world.png"),
    scale: int = 6,
    world: WorldConfig = WorldConfig(),  # noqa: B008 - frozen
) -> None:
    """Draw a few episodes of every task into one image.

    Args:
        settings: which episodes.
        output: Image file to write; .png, .jpg, .jpeg or .webp decides the format.
        scale: How many times each pixel is enlarged.
        world: Sizes and difficulty.
    """
    draw_sheet(settings, output, scale, STREAMS, lambda: World(settings.seed, world, stream=settings.stream).sample)


def base(
    output: Path = Path("runs/mini/random"),
    preset: str = "mini",
    canvas: int = 16,
    seed: int = 0,
) -> None:
    """Write a checkpoint folder with random weights for Stage I to start from.

    Args:
        output: The folder.
        preset: mini (the mini-world, its words as tokenizer), mini_dense (the same without separate experts),
            mini_photo (real resolutions, any text), or the one of another base model (docs/second_base.md).
        canvas: Side of the mini-world's images in pixels.
        seed: Seed of the weights.
    """
    from scone_pl.worlds.shapes.base import write_base

    check_whole("--seed", seed)
    check_whole("--canvas", canvas, minimum=1, maximum=4096)
    if preset == "mini_photo" and canvas != 16:
        raise UserError("--canvas is of the mini-world; preset mini_photo takes real resolutions")
    written = write_base(output, preset=preset, canvas=canvas, seed=seed)
    print(f"{output}: random weights of preset {preset}, {'written' if written else 'already there'}")


def evaluate(settings: Scoring, world: WorldConfig = WorldConfig()) -> None:  # noqa: B008 - frozen
    """Sample the fixed test episodes with a checkpoint's weights and score them with the exact judge.

    Args:
        settings: the evaluation.
        world: Sizes and difficulty.
    """
    score(settings, lambda: fixed_set(settings.per_task, stream=settings.stream, config=world))


def report(scores: list[Path], names: list[str]) -> None:
    """Print several evaluations side by side.

    Args:
        scores: scores.json files that `mini evaluate` wrote.
        names: Name of each file in the tables.
    """
    from scone_pl.worlds.evaluate import TABLES, read_report

    if len(scores) != len(names):
        raise UserError(f"report: {len(scores)} --scores and {len(names)} --names; give each file a name")
    if len(set(names)) != len(names):
        raise UserError(f"report: --names {' '.join(names)}: a name comes twice")
    reports = {name: read_report(file) for name, file in zip(names, scores, strict=True)}
    tables = [table(reports) for table in TABLES]
    print(*filter(None, tables), sep="\n\n")
