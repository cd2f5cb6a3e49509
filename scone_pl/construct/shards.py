"""Shards of what steps let through: a conversion like any other, resumable, in parallel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.construct.items import Item
from scone_pl.construct.phases import State
from scone_pl.construct.pools import Images
from scone_pl.data.convert import convert, finished, same_plan
from scone_pl.data.json_rows import JsonRows
from scone_pl.data.manifest import Manifest
from scone_pl.data.sample import BrokenSampleError, Sample, sample_or_error
from scone_pl.errors import UserError
from scone_pl.files import replace_folder

if TYPE_CHECKING:
    from scone_pl.construct.pipeline import Pipeline


class ItemInput:
    """The samples of steps as the source of a conversion; see `data.inputs.Input`."""

    def __init__(self, folders: list[Path], images: Images) -> None:
        self.images = images
        self.states = [State.of(folder) for folder in folders]
        files = [folder / "items.jsonl" for folder in folders]
        self.rows = [JsonRows.open(file) for file in files if file.stat().st_size]
        self._ends = list(accumulate(map(len, self.rows)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def keys(self) -> Iterator[str]:
        return (item.key for item in self._items(0, len(self)))

    def read(self, start: int, stop: int) -> Iterator[tuple[str, Sample | BrokenSampleError]]:
        return ((item.key, sample_or_error(self._sample, item)) for item in self._items(start, stop))

    def identity(self) -> list[Any]:
        return ["construct", *(state.items_sha256 for state in self.states if state)]

    def describe(self) -> str:
        return "samples of steps"

    def _items(self, start: int, stop: int) -> Iterator[Item]:
        for rows, end in zip(self.rows, self._ends, strict=True):
            begin = end - len(rows)
            for _, content in rows.read(min(max(start - begin, 0), len(rows)), min(max(stop - begin, 0), len(rows))):
                if isinstance(content, UserError):
                    raise content
                yield Item.from_json(content)

    def _sample(self, item: Item) -> Sample:
        return item.sample([self.images.read(ref) for ref in item.images])


def write_outputs(pipeline: Pipeline, *, progress: bool = True) -> dict[str, Manifest]:
    """Writes or replaces the folders of shards; those that are there already stay as they are.

    Raises:
        UserError: a folder would have no samples.
    """
    manifests = {}
    for name, steps in pipeline.outputs.items():
        source = ItemInput([pipeline.step_folder(step) for step in steps], pipeline.images)
        folder = pipeline.folder / "shards" / name
        if not len(source) and any(state and not state.complete for state in map(pipeline.state, steps)):
            print(f"{folder}: not written yet, as nothing that was answered has passed")
            continue
        if not len(source):
            reasons = {step: state.reasons for step in steps if (state := pipeline.state(step))}
            raise UserError(f"{folder}: no sample is left ({reasons}); see `construct status`")
        new = folder.with_name(f".{name}.new")
        config, workers = pipeline.settings.shards, pipeline.settings.processes
        try:
            result = finished(source, folder, config)
        except UserError:  # of other samples or settings
            result = None
        if result is None:
            _clear_other(source, new, config)
            result = convert(source, new, config, workers=min(workers, max(1, len(source) // 200)), progress=progress)
            replace_folder(new, folder)
        manifests[name], faults = result
        size = f"{manifests[name].samples} samples, {manifests[name].bytes / 1e6:.1f} MB"
        print(f"{folder}: {size}")
        print(faults.report("skipped", 20), end="")
    return manifests


def _clear_other(source: ItemInput, folder: Path, config: Any) -> None:
    """Removes what an interrupted conversion of other samples has left."""
    plan = folder / ".convert" / "plan.json"
    if not os.path.lexists(folder):
        return
    if not plan.is_file() or not same_plan(plan, source, config):
        shutil.rmtree(folder, ignore_errors=True)
