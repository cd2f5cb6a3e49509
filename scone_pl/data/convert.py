"""Resumable, parallel conversion of any source to shards.

The items of a source are divided into ranges of `samples_per_shard`; one process writes each range to one tar. Until
all are written, the output folder holds a folder `.convert` with the settings and, per finished range, its index lines,
counts and checksums; these become `index.jsonl` and `manifest.json`. The same source and settings give the same bytes,
whatever the number of workers and interruptions.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scone_pl.data.faults import Faults
from scone_pl.data.index import INDEX, IndexEntry, duplicates
from scone_pl.data.inputs import Input, ShardInput
from scone_pl.data.jobs import Tick, check_workers, run_jobs
from scone_pl.data.manifest import MANIFEST, Manifest, ShardInfo
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.selection import ConvertConfig, as_stored
from scone_pl.data.shard_writer import shard_info, write_manifest, write_tar
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import sha256_of
from scone_pl.errors import UserError
from scone_pl.files import clear_leftovers, read_json, writing
from scone_pl.outputs import check_output_folder
from scone_pl.progress import Progress

WORK = ".convert"
RECORD = ".converted.json"
"""Source, settings and skipped samples of a finished conversion."""


@dataclass(frozen=True)
class _Shared:
    source: Input
    config: ConvertConfig
    output: Path
    duplicates: frozenset[int]
    """Items whose key an earlier item has."""


@dataclass(frozen=True)
class _Range:
    number: int
    start: int
    stop: int
    max_samples: int | None = None
    """Stop after this many valid samples."""

    def files(self, output: Path) -> tuple[Path, Path, Path]:
        """The tar, its index lines, its counts."""
        name = f"{self.number:05d}"
        return output / f"{name}.tar", output / WORK / f"{name}.jsonl", output / WORK / f"{name}.json"


@dataclass(frozen=True)
class _RangeResult:
    range: _Range
    shard: ShardInfo | None
    """None = the range has no valid sample."""
    kinds: dict[str, int]
    faults: Faults

    @property
    def samples(self) -> int:
        return self.shard.samples if self.shard else 0


def convert(
    source: Input,
    output: str | Path,
    config: ConvertConfig | None = None,
    *,
    workers: int = 1,
    progress: bool = True,
) -> tuple[Manifest, Faults]:
    """Writes the valid samples of `source` to a data set in `output`; resumes an interrupted conversion.

    Args:
        source: see `inputs.open_input`.
        output: folder of the data set; one that the same call has already written is returned as it is.
        config: which samples to keep and how to store them.
        workers: number of processes.
        progress: whether to show a progress bar.

    Raises:
        UserError: the source has no valid sample, or `output` cannot be written, is or lies in the source, holds
            another data set or another unfinished conversion, or is in use by another process; or the source has
            changed meanwhile.
    """
    config, output = config or ConvertConfig(), Path(output)
    check_workers(workers)
    folder = source.folder if isinstance(source, ShardInput) else None
    if folder is not None and folder in (output.resolve(), *output.resolve().parents):
        raise UserError(f"{output} is or lies in the source {folder}; choose another output folder")
    check_output_folder(output)
    if result := finished(source, output, config):
        return result
    try:
        with _lock(output):
            _start_or_resume(output, _plan(source, config))
            shared = _Shared(source, config, output, frozenset(duplicates(source.keys(), len(source))))
            return _convert_all(shared, workers, progress)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror or error}; fix this and run the same command to resume"
        ) from error


def finished(source: Input, output: str | Path, config: ConvertConfig | None = None) -> tuple[Manifest, Faults] | None:
    """The result of an earlier `convert` with these arguments; None if `output` holds no data set yet.

    Raises:
        UserError: `output` holds another data set, or a damaged one.
    """
    output = Path(output)
    try:
        if not (output / MANIFEST).exists():
            return None
        record = read_json(output / RECORD, dict) if (output / RECORD).exists() else {}
    except OSError as error:
        raise UserError(f"{output}: cannot be read ({error.strerror or error})") from None
    if _without_tokens(record.get("plan")) != _plan(source, config or ConvertConfig()):
        raise UserError(
            f"{output} already holds a data set, of another source or with other settings; choose another folder"
        )
    manifest, faults = ShardSet(output).manifest, record.get("faults") or {"counts": {}, "examples": []}
    shutil.rmtree(output / WORK, ignore_errors=True)  # the conversion may have been killed just before this
    return manifest, Faults.from_json(faults)


def same_plan(file: Path, source: Input, config: ConvertConfig) -> bool:
    """Whether a `plan.json` is that of a conversion of `source` with these settings."""
    try:
        return bool(_without_tokens(read_json(file, dict)) == _plan(source, config))
    except UserError:
        return False


def _plan(source: Input, config: ConvertConfig) -> dict[str, Any]:
    """Everything that the result depends on, as parsed from JSON."""
    plan: dict[str, Any] = json.loads(json.dumps({"source": source.identity(), "config": asdict(config)}))
    return plan


def _without_tokens(plan: Any) -> Any:
    """A stored plan without the settings of token counts, which older versions stored."""
    return {name: value for name, value in plan.items() if name != "tokens"} if isinstance(plan, dict) else plan


def _convert_all(shared: _Shared, workers: int, progress: bool) -> tuple[Manifest, Faults]:
    source, config, output = shared.source, shared.config, shared.output
    size = config.samples_per_shard
    ranges = [_Range(n, start, min(start + size, len(source))) for n, start in enumerate(range(0, len(source), size))]
    total = 0
    accepted: list[_RangeResult] = []
    with Progress(output.name, len(source), unit="items", show=progress) as bar:
        for result in run_jobs(_convert_range, shared, ranges, workers=min(workers, len(ranges)), bar=bar):
            if config.limit is not None and total + result.samples > config.limit:
                _remove_files(result.range, output)
                result = _convert_range(
                    shared, dataclasses.replace(result.range, max_samples=config.limit - total), lambda: None
                )
            accepted.append(result)
            total += result.samples
            if total == config.limit:
                break
    return _finish(shared, accepted, ranges)


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Locks `output` against other conversions.

    Raises:
        UserError: another process holds the lock, or has just written a data set there.
    """
    busy = f"{output}: another process is converting into it; wait, or choose another folder"
    (output / WORK).mkdir(parents=True, exist_ok=True)
    lock = output / WORK / "lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError:
            pass  # a file system without locks
        # Between the check for a manifest and the lock, another process may have finished and removed the lock file.
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            raise UserError(busy)
        if (output / MANIFEST).exists():
            shutil.rmtree(output / WORK, ignore_errors=True)
            raise UserError(
                f"{output} already holds a data set; run the same command again to check whether it is this one"
            )
        yield


def _start_or_resume(output: Path, plan: dict[str, Any]) -> None:
    plan_file = output / WORK / "plan.json"
    if plan_file.exists():
        try:
            stored = read_json(plan_file, dict)
        except UserError:  # damaged by a power failure; finished ranges cannot be attributed to a plan any more
            for record in (output / WORK).glob("[0-9]*.json"):
                record.unlink()
        else:
            if _without_tokens(stored) != plan:
                raise UserError(
                    f"{output} holds an unfinished conversion of another source or with other settings; use the same "
                    "source and settings to resume, or choose another folder"
                )
            return
    elif unexpected := sorted(path.name for path in output.glob("*.tar")) or [INDEX] * (output / INDEX).exists():
        raise UserError(f"{output} holds {unexpected[0]}, which no conversion has written; choose another folder")
    with writing(plan_file) as file:
        file.write(json.dumps(plan, indent=1).encode())


def _convert_range(shared: _Shared, range_: _Range, tick: Tick) -> _RangeResult:
    """Writes one tar, unless an earlier process has."""
    if result := _finished_range(range_, shared.output):
        for _ in range(range_.start, range_.stop):
            tick()
        return result
    tar, index, counts = range_.files(shared.output)
    counts.unlink(missing_ok=True)
    faults = Faults()
    entries = write_tar(
        _valid_samples(shared, range_, faults, tick), tar, range_.number, shared.config.exif_orientation
    )
    with writing(index) as file:
        for entry in entries:
            file.write(entry.to_json().encode() + b"\n")
    shard = shard_info(tar, len(entries)) if entries else None
    kinds = dict(Counter[str](entry.kind for entry in entries))
    record = {
        "most": range_.max_samples,
        "shard": shard and asdict(shard),
        "index_sha256": sha256_of(index),
        "kinds": kinds,
        "faults": faults.to_json(),
    }
    with writing(counts) as file:
        file.write(json.dumps(record).encode())
    return _RangeResult(range_, shard, kinds, faults)


def _finished_range(range_: _Range, output: Path) -> _RangeResult | None:
    """An earlier process's result for a range if its files match their checksums (a power failure may truncate
    some).
    """
    tar, index, counts = range_.files(output)
    if not counts.exists():
        return None
    try:
        record = read_json(counts, dict)
        shard = ShardInfo(**record["shard"]) if record["shard"] else None
        same = record["most"] == range_.max_samples and record["index_sha256"] == sha256_of(index)
        if same and (shard is None or (tar.name, sha256_of(tar)) == (shard.file, shard.sha256)):
            return _RangeResult(range_, shard, dict(record["kinds"]), Faults.from_json(record["faults"]))
    except (KeyError, TypeError, ValueError, OSError):
        pass
    return None


def _valid_samples(shared: _Shared, range_: _Range, faults: Faults, tick: Tick) -> Iterator[Sample]:
    valid = 0
    for number, (key, item) in enumerate(shared.source.read(range_.start, range_.stop), range_.start):
        if valid == range_.max_samples:
            return
        tick()
        try:
            if number in shared.duplicates:
                raise BrokenSampleError("duplicate key", "an earlier sample has this key")
            if isinstance(item, BrokenSampleError):
                raise item
            sample = as_stored(item, shared.config)
        except BrokenSampleError as error:
            faults.add(key, error)
            continue
        valid += 1
        yield sample


def _remove_files(range_: _Range, output: Path) -> None:
    for file in reversed(range_.files(output)):
        file.unlink(missing_ok=True)


def _finish(shared: _Shared, accepted: list[_RangeResult], ranges: list[_Range]) -> tuple[Manifest, Faults]:
    output = shared.output
    plan = _plan(shared.source, shared.config)
    if _without_tokens(read_json(output / WORK / "plan.json", dict)) != plan:
        raise UserError(f"{output}: the source has changed while it was converted; convert it into another folder")
    faults, kinds, shards = Faults(), Counter[str](), list[ShardInfo]()
    for range_ in ranges[len(accepted) :]:
        _remove_files(range_, output)
    clear_leftovers(output)
    with writing(output / INDEX) as index:
        for result in accepted:
            faults.merge(result.faults)
            kinds.update(result.kinds)
            if result.shard is None:
                continue
            lines = 0
            index_lines = result.range.files(output)[1]
            with index_lines.open("rb") as stream:
                for lines, line in enumerate(stream, 1):
                    entry = IndexEntry.from_json(line, f"{index_lines}: line {lines}")
                    index.write(dataclasses.replace(entry, shard=len(shards)).to_json().encode() + b"\n")
            if lines != result.samples:
                raise UserError(f"{index_lines} has changed; run the same command to write it again")
            shards.append(result.shard)
    if not shards:
        shutil.rmtree(output / WORK)
        (output / INDEX).unlink()
        first = f", first {faults.examples[0]}" if faults.examples else ""
        raise UserError(f"{output}: the source has no valid sample ({faults}{first}); check the source and options")
    with writing(output / RECORD) as record:
        record.write(json.dumps({"plan": plan, "faults": faults.to_json()}, indent=1).encode())
    manifest = write_manifest(output, kinds, shards, shared.config.exif_orientation)
    shutil.rmtree(output / WORK, ignore_errors=True)  # another process may remove it as well, see `finished`
    return manifest, faults
