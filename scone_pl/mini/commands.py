"""`mini`: commands of the mini-world."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli

from scone_pl.mini.episode import TASKS
from scone_pl.mini.shards import WORLD_SETS, write_world
from scone_pl.mini.world import World, WorldConfig


def shards(
    output: Path = Path("data_shards/mini"),
    base_single: int = 40_000,
    refined_single: int = 10_000,
    multi_candidate: int = 20_000,
    seed: int = 0,
    world: WorldConfig = WorldConfig(),  # noqa: B008 - frozen
    samples_per_shard: int = 5000,
    progress: bool = True,
) -> None:
    """Writes the three training sets of the mini-world; a set that is there already is left as it is.

    Args:
        output: folder in which each set gets a folder of its name.
        base_single: samples of the base single-candidate set; 0 leaves a set out.
        refined_single: samples of the refined single-candidate set.
        multi_candidate: samples of the multi-candidate set.
        seed: of the world.
        world: sizes and difficulty.
        samples_per_shard: samples in one tar file.
        progress: whether to show progress bars.
    """
    sizes = {
        "base_single": base_single,
        "refined_single": refined_single,
        "multi_candidate": multi_candidate,
    }
    for name, samples in sizes.items():
        if not samples:
            continue
        manifest = write_world(
            output / name,
            samples=samples,
            seed=seed,
            tasks=WORLD_SETS[name].tasks,
            stream=WORLD_SETS[name].stream,
            config=world,
            samples_per_shard=samples_per_shard,
            progress=progress,
        )
        state = "already there" if manifest is None else "written"
        print(f"{output / name}: {samples} samples, {state}")


def picture(
    output: Path = Path("mini_world.png"),
    per_task: int = 4,
    seed: int = 0,
    stream: str = "base",
    world: WorldConfig = WorldConfig(),  # noqa: B008 - frozen
    scale: int = 6,
) -> None:
    """Draws a few episodes of every task on one sheet.

    Args:
        output: PNG file to write.
        per_task: episodes of each task.
        seed: of the world.
        stream: base, refined, multi, validation or test.
        world: sizes and difficulty.
        scale: how many times each pixel is enlarged.
    """
    from scone_pl.mini.picture import contact_sheet

    source = World(seed, world, stream=stream)
    rows = [[source.sample(task, index) for index in range(per_task)] for task in TASKS]
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, scale).save(output)
    print(f"{output}: {per_task} episodes of each of {len(TASKS)} tasks")


COMMANDS = {"shards": shards, "picture": picture}


def main(args: list[str]) -> int:
    """Runs one of `COMMANDS`."""
    auto_cli(COMMANDS, args=args, prog="scone_pl mini", as_positional=False)
    return 0
