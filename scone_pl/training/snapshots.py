"""Snapshots: what a run needs to resume, as a distributed checkpoint of which every rank writes its own part.

```text
<output_dir>/checkpoints/
  step-000500/          appears whole or not at all: written aside as .step-000500.partial, synced, renamed
    .metadata, *.distcp   trained weights, optimizer state, EMA: torch.distributed.checkpoint
    run.pt                step, scheduler, position in the data stream, callbacks
    checksums.json        of run.pt and .metadata; tensors hold their own, see `intact.py`
```

A snapshot holds what training changes. Frozen weights are read again from the folder that the run started from, whose
identity `start.json` holds. Nothing in here depends on the number of ranks.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from scone_pl.errors import UserError
from scone_pl.files import replace_folder, writing
from scone_pl.training.intact import INDEX_FILE, Part, check_archive, check_snapshot, read_index, write_checksums

RUN_FILE = "run.pt"
_NAME = re.compile(r"step-(\d+)")


def snapshot_name(step: int) -> str:
    """Name of the snapshot after optimizer step number `step`."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int:
    """Inverse of `snapshot_name`."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path}: no snapshot; they are called {snapshot_name(0)} and so on")
    return int(match[1])


def snapshots(folder: Path) -> list[Path]:
    """The whole snapshots in a `checkpoints` folder, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=step_of)


def prune(folder: Path, keep_last: int, keep_every: int) -> None:
    """Deletes all snapshots but the last `keep_last` and those at multiples of `keep_every` steps (0 = none)."""
    for path in snapshots(folder)[:-keep_last]:
        if keep_every and step_of(path) % keep_every == 0:
            continue
        if path.is_dir():  # under another name, so that a crash leaves no half of it
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.partial")), ignore_errors=True)
        else:  # of another strategy than FullySharded
            path.unlink(missing_ok=True)


class SnapshotWriter:
    """Writes snapshots in the background, one at a time; every rank has one and calls it at the same steps."""

    def __init__(self) -> None:
        """A collective where there are several ranks: the writer gets a process group of its own."""
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._leads = not dist.is_initialized() or dist.get_rank() == 0
        self._running: Future[None] | None = None
        self._path = Path()

    def write(
        self, tensors: dict[str, Any], run: dict[str, Any], path: Path, *, done: Callable[[], None] | None = None
    ) -> None:
        """Begins to write; returns as soon as the tensors are copied. The previous one must have been waited for.

        Args:
            tensors: nested state dicts with this rank's shards.
            run: everything else; the same on all ranks, the first one writes it.
            path: the folder to appear.
            done: called on the first rank when it has appeared.
        """
        if self._running is not None:
            raise RuntimeError("wait() for the snapshot before")
        aside = path.with_name(f".{path.name}.partial")
        if self._leads:
            _remove_partial(path.parent)
        image = io.BytesIO()
        torch.save(run, image)

        def finish() -> None:
            if not self._leads:
                return
            with (aside / RUN_FILE).open("wb") as file:
                file.write(image.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            write_checksums(aside, (INDEX_FILE, RUN_FILE))
            replace_folder(aside, path)
            if done is not None:
                done()

        self._path = path
        saving = dcp.async_save(tensors, checkpoint_id=aside, process_group=self._group)
        assert isinstance(saving, Future)  # the other type is of another kind of background process
        self._running = _then(saving, finish)

    def wait(self) -> bool:
        """Waits until the last snapshot is written; a collective.

        Returns:
            Whether there was one to wait for.

        Raises:
            UserError: a rank could not write its part, on every rank; the snapshots before are as they were.
        """
        running, self._running = self._running, None
        if running is None:
            return False
        error = running.exception()
        failed = torch.tensor(float(error is not None))
        if self._group is not None:
            dist.all_reduce(failed, group=self._group)
        if failed:
            if self._leads:
                _remove_partial(self._path.parent)
            reason = "another rank failed" if error is None else reason_of(error)
            raise UserError(f"{self._path}: not written ({reason}); earlier snapshots are whole") from error
        return True


def shape_of(entry: object) -> tuple[int, ...]:
    """Of a tensor in an index, which has been checked to hold tensors there."""
    assert isinstance(entry, TensorStorageMetadata)
    return tuple(entry.size)


def _then(future: Future[Any], act: Callable[[], None]) -> Future[None]:
    """A future that ends when `act` has run after it, in the same thread."""
    ended: Future[None] = Future()

    def run(first: Future[Any]) -> None:
        try:
            first.result()
            act()
        except (Exception, CheckpointException) as error:  # noqa: BLE001 (wait() raises it)
            ended.set_exception(error)
        else:
            ended.set_result(None)

    future.add_done_callback(run)
    return ended


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def reason_of(error: BaseException) -> str:
    """What went wrong in a line: the failure of the first rank out of torch's report on all of them."""
    failures = getattr(error, "failures", None)
    if failures:
        rank, (inner, _) = next(iter(failures.items()))
        return f"rank {rank}: {reason_of(inner)}"
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path}: not readable ({reason_of(error)}); move it aside to resume from the one before")


def read_run(path: Path, *, mapped: bool = True) -> dict[str, Any]:
    """The part of a snapshot that is no tensor state.

    A run without `fully_sharded` has Lightning's own checkpoints: one file with everything. With `mapped` its tensors
    stay on disk until they are asked for.

    Raises:
        UserError: `path` is no snapshot, or not readable.
    """
    file = path if path.is_file() else path / RUN_FILE
    if not file.is_file():
        raise UserError(f"{path}: not a snapshot, {RUN_FILE} is missing")
    try:
        check_snapshot(path, RUN_FILE)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and path.is_file())
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a snapshot; it holds {type(content).__name__}")
    return content


def read_metadata(path: Path) -> Metadata:
    """Names, shapes and dtypes of all tensors in a snapshot."""
    try:
        return read_index(path)
    except (Exception, CheckpointException) as error:
        raise _unreadable(path, error) from error


class SingleFileIO(TorchCheckpointIO):
    """Lightning's checkpoints of a run without `fully_sharded`: whole or not at all, checked, and free of code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes the file; raises a `UserError` if that fails."""
        with writing(Path(path)) as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads the file onto the CPU; raises a `UserError` if it is damaged, or holds more than tensors and values."""
        if "://" in str(path):
            return super().load_checkpoint(path, weights_only=True)
        return read_run(Path(path), mapped=False)


class FileReader:
    """Reads the weights in a checkpoint of a run without `fully_sharded`, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Raises a `UserError` if the file holds no weights."""
        weights = read_run(path).get("state_dict")
        if not isinstance(weights, dict):
            raise UserError(
                f"{path}: holds no weights; give the snapshot, the folder checkpoints/step-... that contains it"
            )
        self._weights: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            if not (isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()):
                raise UserError(f"{path}: {name!r:.80} is no tensor of real numbers; use another snapshot")
            self._weights[name.removeprefix("model.")] = tensor

    def shapes(self, section: str) -> dict[str, tuple[int, ...]]:
        """See `SnapshotReader`; such a run keeps no average."""
        return {name: tuple(tensor.shape) for name, tensor in self._weights.items()} if section == "model" else {}

    def read(self, section: str, name: str) -> Tensor:
        """See `SnapshotReader`."""
        return self._weights[name].float()


def reader_of(path: Path) -> SnapshotReader | FileReader:
    """The reader for a snapshot: a folder or a file."""
    return FileReader(path) if path.is_file() else SnapshotReader(path)


class _Planner(DefaultLoadPlanner):
    """Reads values that are no tensors, such as learning rates, without running code from them."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        item = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], item)


class SnapshotReader(FileSystemReader):
    """Reads single tensors of a snapshot, in one process; its index is read once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._index = read_metadata(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._index

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        """A tensor's bytes, or a value's, compared with their checksums before anybody reads them."""
        part = cast(IO[bytes], Part(file, sinfo.offset, sinfo.length))
        check_archive(part, sinfo.relative_path)
        return part

    def shapes(self, section: str) -> dict[str, tuple[int, ...]]:
        """Of the tensors in a section, by their names there."""
        start = f"{section}."
        entries = self._index.state_dict_metadata.items()
        return {name.removeprefix(start): shape_of(entry) for name, entry in entries if name.startswith(start)}

    def read(self, section: str, name: str) -> Tensor:
        """A whole tensor, in float32.

        Raises:
            UserError: a file is damaged.
        """
        into = {section: {name: torch.empty(shape_of(self._index.state_dict_metadata[f"{section}.{name}"]))}}
        with warnings.catch_warnings():  # about running in one process, which is intended
            warnings.simplefilter("ignore")
            try:
                dcp.load(into, storage_reader=self, planner=_Planner(), no_dist=True)
            except (Exception, CheckpointException) as error:
                raise _unreadable(Path(self.path), error) from error
        return into[section][name]


def read_tensors(path: Path, into: dict[str, Any], section: str) -> None:
    """Fills nested state dicts in place, each rank its own parts; strict about names and shapes.

    Args:
        path: the snapshot.
        into: nested dict with tensors to fill; other values are replaced.
        section: top-level key of `into` whose names must be exactly those in the snapshot.

    Raises:
        UserError: names or shapes differ, with the first few named, or a file is damaged.
    """
    reader = SnapshotReader(path)
    metadata = reader.read_metadata().state_dict_metadata
    stored = {n.removeprefix(f"{section}."): m for n, m in metadata.items() if n.startswith(f"{section}.")}
    targets: dict[str, Tensor] = into[section]
    problems = [f"missing {name}" for name in targets if name not in stored]
    problems += [f"unexpected {name}" for name in sorted(stored.keys() - targets.keys())]
    problems += [
        f"{name} has shape {list(shape_of(stored[name]))}, the model needs {list(tensor.shape)}"
        for name, tensor in targets.items()
        if name in stored and shape_of(stored[name]) != tuple(tensor.shape)
    ]
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path}: does not fit what this run trains: {'; '.join(problems[:5])}{more}")
    try:
        dcp.load(into, storage_reader=reader, planner=_Planner())
    except (Exception, CheckpointException) as error:
        raise _unreadable(path, error) from error
