"""Episodes of a world as shard sets on disk, so that they are trained on like any other data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.errors import UserError
from scone_pl.files import read_text, write_text
from scone_pl.outputs import check_output_folder

if TYPE_CHECKING:
    from scone_pl.data.manifest import Manifest
    from scone_pl.data.sample import Sample

SETTINGS = "world.json"
"""Beside the manifest: what a set was made with."""


def in_turn(tasks: Sequence[str], number: int) -> tuple[int, int]:
    """(position in `tasks`, index of the episode) of sample `number` of a set that takes its tasks in turn.

    A task that is named twice goes on counting instead of repeating its episodes.
    """
    index, turn = divmod(number, len(tasks))
    same = [place for place, task in enumerate(tasks) if task == tasks[turn]]
    return turn, index * len(same) + same.index(turn)


def write_set(
    folder: str | Path,
    samples: Iterable[Sample],
    settings: Mapping[str, Any],
    *,
    count: int,
    samples_per_shard: int,
    progress: bool = True,
) -> Manifest | None:
    """Writes a shard set, unless it is there already.

    Args:
        folder: where; created.
        samples: what to write; not drawn from if the set is there.
        settings: what decides the samples, JSON types.
        count: how many samples there are.
        samples_per_shard: samples in one tar file.
        progress: whether to show a progress bar.

    Returns:
        The manifest, or None if the folder already holds the same set, whole.

    Raises:
        UserError: the folder holds another set.
    """
    from scone_pl.data.manifest import MANIFEST
    from scone_pl.data.shard_writer import write_shards
    from scone_pl.data.shards import ShardSet

    folder = Path(folder)
    if count < 1:
        raise UserError(f"samples is {count}; it must be at least 1")
    check_output_folder(folder)
    text = json.dumps({**settings, "samples_per_shard": samples_per_shard}, indent=1) + "\n"
    file = folder / SETTINGS
    if (folder / MANIFEST).exists():
        if file.exists() and read_text(file) == text:
            ShardSet(folder)
            return None
        raise UserError(f"{folder} holds another data set; choose another --output")
    write_text(text, file)
    return write_shards(samples, folder, samples_per_shard=samples_per_shard, total=count, progress=progress)
