"""From any source to shards: in parallel, going on where it was stopped, a sample at a time.

The items of a source are cut into ranges of `samples_per_shard`; each range becomes one tar, made by one process.
Until all are done the output folder holds a folder `.convert` with the settings, and per finished range its index
lines and counts with their checksums; at the end these become `index.jsonl` and `manifest.json`. The same source and
settings give the same bytes, whatever the number of workers and however often it was stopped.
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

import numpy as np

from scone_pl.data.faults import Faults
from scone_pl.data.index import INDEX, IndexEntry
from scone_pl.data.inputs import Input, ShardInput
from scone_pl.data.jobs import Tick, check_workers, run_jobs
from scone_pl.data.manifest import MANIFEST, Manifest, ShardInfo, TokenCounts
from scone_pl.data.progress import progress_bar
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.seeding import seed_of
from scone_pl.data.selection import ConvertConfig, as_stored
from scone_pl.data.shard_writer import describe, write_manifest, write_tar
from scone_pl.data.shards import ShardSet
from scone_pl.data.storage import sha256_of
from scone_pl.data.token_counts import TokenCounter
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.files import clear_leftovers, read_json, writing
from scone_pl.outputs import check_output_folder

WORK = ".convert"
NOTE = ".converted.json"
"""What a finished conversion was asked for, and what it left out."""


@dataclass(frozen=True)
class _Shared:
    source: Input
    config: ConvertConfig
    output: Path
    doubled: frozenset[int]
    """Items whose key an earlier one has."""
    counter: TokenCounter


@dataclass(frozen=True)
class _Range:
    number: int
    start: int
    stop: int
    most: int | None = None
    """Stop after so many good samples."""

    def files(self, output: Path) -> tuple[Path, Path, Path]:
        """The tar, its index lines, its counts."""
        name = f"{self.number:05d}"
        return output / f"{name}.tar", output / WORK / f"{name}.jsonl", output / WORK / f"{name}.json"


@dataclass(frozen=True)
class _Done:
    range: _Range
    shard: ShardInfo | None
    """None = no sample of the range is good."""
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
    tokenizer: Tokenizer | None = None,
    workers: int = 1,
    progress: bool = True,
) -> tuple[Manifest, Faults]:
    """Writes the good samples of `source` to a data set in `output`; a stopped conversion goes on.

    Args:
        source: see `inputs.open_input`.
        output: folder of the data set; if it holds one that the same call made, that is returned.
        config: what to take and how to store it.
        tokenizer: for the token counts in index and manifest, see `TokenCounter.published`.
        workers: processes.
        progress: whether to show a progress bar.

    Raises:
        UserError: nothing good in the source, or `output` cannot be written, is or lies in the source, holds another
            data set or another unfinished conversion, or another process is converting into it.
    """
    config, output = config or ConvertConfig(), Path(output)
    check_workers(workers)
    folder = source.folder if isinstance(source, ShardInput) else None
    if folder is not None and folder in (output.resolve(), *output.resolve().parents):
        raise UserError(f"{output} is or lies in the source {folder}; choose another output folder")
    check_output_folder(output)
    if done := finished(source, output, config, tokenizer=tokenizer):
        return done
    counter = TokenCounter.published(tokenizer)
    try:
        with _claimed(output):
            _begin(output, _facts(source, config, counter))
            shared = _Shared(source, config, output, _doubled(source), counter)
            return _convert_all(shared, workers, progress)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror or error}; put that right, and the same command goes on"
        ) from error


def finished(
    source: Input, output: str | Path, config: ConvertConfig | None = None, *, tokenizer: Tokenizer | None = None
) -> tuple[Manifest, Faults] | None:
    """What `convert` with these arguments has made in `output`; None if there is no data set yet.

    Raises:
        UserError: there is another data set, or it is damaged.
    """
    output = Path(output)
    try:
        if not (output / MANIFEST).exists():
            return None
        note = read_json(output / NOTE, dict) if (output / NOTE).exists() else {}
    except OSError as error:
        raise UserError(f"{output}: cannot be read ({error.strerror or error})") from None
    if note.get("plan") != _facts(source, config or ConvertConfig(), TokenCounter.published(tokenizer)):
        raise UserError(
            f"{output} already holds a data set, of another source or with other settings; choose another folder"
        )
    manifest, faults = ShardSet.open(output).manifest, note.get("faults") or {"counts": {}, "examples": []}
    shutil.rmtree(output / WORK, ignore_errors=True)  # its process may have ended just before that
    return manifest, Faults.from_json(faults)


def _facts(source: Input, config: ConvertConfig, counter: TokenCounter) -> dict[str, Any]:
    """All that the result depends on, as it is in JSON."""
    return json.loads(json.dumps({"source": source.identity(), "config": asdict(config), "tokens": counter.settings}))


def _convert_all(shared: _Shared, workers: int, progress: bool) -> tuple[Manifest, Faults]:
    source, config, output = shared.source, shared.config, shared.output
    size = config.samples_per_shard
    ranges = [_Range(n, start, min(start + size, len(source))) for n, start in enumerate(range(0, len(source), size))]
    total = 0
    accepted: list[_Done] = []
    with progress_bar(total=len(source), desc=output.name, unit="item", show=progress, smoothing=0.05) as bar:
        for done in run_jobs(_convert_range, shared, ranges, workers=min(workers, len(ranges)), bar=bar):
            if config.limit is not None and total + done.samples > config.limit:
                _remove(done.range, output)
                done = _convert_range(shared, dataclasses.replace(done.range, most=config.limit - total), lambda: None)
            accepted.append(done)
            total += done.samples
            if total == config.limit:
                break
    return _finish(shared, accepted, ranges)


@contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """Keeps other conversions out of `output`.

    Raises:
        UserError: another process is at work in it, or has just made a data set in it.
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
        # Between the look for a manifest and the lock another process may have finished, and removed the lock.
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            raise UserError(busy)
        if (output / MANIFEST).exists():
            shutil.rmtree(output / WORK)
            raise UserError(f"{output} already holds a data set; give the same command to see whether it is this one")
        yield


def _begin(output: Path, facts: dict[str, Any]) -> None:
    plan = output / WORK / "plan.json"
    if plan.exists():
        try:
            found = read_json(plan, dict)
        except UserError:  # a power cut; nothing that this plan was for can be told from other work
            for record in (output / WORK).glob("[0-9]*.json"):
                record.unlink()
        else:
            if found != facts:
                raise UserError(
                    f"{output} holds an unfinished conversion of another source or with other settings; give the "
                    "same ones to go on, or choose another folder"
                )
            return
    elif foreign := sorted(path.name for path in output.glob("*.tar")) or [INDEX] * (output / INDEX).exists():
        raise UserError(f"{output} holds {foreign[0]}, which no conversion here has made; choose another folder")
    with writing(plan) as file:
        file.write(json.dumps(facts, indent=1).encode())


def _doubled(source: Input) -> frozenset[int]:
    hashes = np.fromiter((seed_of(key) for key in source.keys()), dtype=np.int64, count=len(source))  # noqa: SIM118
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), dtype=bool)
    again[first] = False
    return frozenset(np.flatnonzero(again).tolist())


def _convert_range(shared: _Shared, range_: _Range, tick: Tick) -> _Done:
    """Makes one tar, unless an earlier process has."""
    if done := _made_before(range_, shared.output):
        for _ in range(range_.start, range_.stop):
            tick()
        return done
    tar, index, counts = range_.files(shared.output)
    counts.unlink(missing_ok=True)
    faults = Faults()
    entries = write_tar(_good_samples(shared, range_, faults, tick), tar, range_.number, shared.config.exif_orientation)
    with writing(index) as file:
        for entry in entries:
            file.write(dataclasses.replace(entry, tokens=shared.counter(entry)).to_json().encode() + b"\n")
    shard = describe(tar, len(entries)) if entries else None
    kinds = dict(Counter(entry.kind for entry in entries))
    record = {
        "most": range_.most,
        "shard": shard and asdict(shard),
        "index_sha256": sha256_of(index),
        "kinds": kinds,
        "faults": faults.to_json(),
    }
    with writing(counts) as file:
        file.write(json.dumps(record).encode())
    return _Done(range_, shard, kinds, faults)


def _made_before(range_: _Range, output: Path) -> _Done | None:
    """What an earlier process made of a range, if all its files are still what it noted; a power cut may empty some."""
    tar, index, counts = range_.files(output)
    if not counts.exists():
        return None
    try:
        record = read_json(counts, dict)
        shard = ShardInfo(**record["shard"]) if record["shard"] else None
        same = record["most"] == range_.most and record["index_sha256"] == sha256_of(index)
        if same and (shard is None or (tar.name, sha256_of(tar)) == (shard.file, shard.sha256)):
            return _Done(range_, shard, dict(record["kinds"]), Faults.from_json(record["faults"]))
    except (KeyError, TypeError, ValueError, OSError):
        pass
    return None


def _good_samples(shared: _Shared, range_: _Range, faults: Faults, tick: Tick) -> Iterator[Sample]:
    good = 0
    for number, (key, found) in enumerate(shared.source.read(range_.start, range_.stop), range_.start):
        if good == range_.most:
            return
        tick()
        try:
            if number in shared.doubled:
                raise BrokenSampleError("duplicate key", "an earlier sample has this key")
            if isinstance(found, BrokenSampleError):
                raise found
            sample = as_stored(found, shared.config)
        except BrokenSampleError as error:
            faults.add(key, error)
            continue
        good += 1
        yield sample


def _remove(range_: _Range, output: Path) -> None:
    for file in reversed(range_.files(output)):
        file.unlink(missing_ok=True)


def _finish(shared: _Shared, accepted: list[_Done], ranges: list[_Range]) -> tuple[Manifest, Faults]:
    output = shared.output
    faults, kinds, shards, tokens = Faults(), Counter[str](), [], 0
    for range_ in ranges[len(accepted) :]:
        _remove(range_, output)
    clear_leftovers(output)
    with writing(output / INDEX) as index:
        for done in accepted:
            faults.merge(done.faults)
            kinds.update(done.kinds)
            if done.shard is None:
                continue
            lines = 0
            work = done.range.files(output)[1]
            with work.open("rb") as stream:
                for lines, line in enumerate(stream, 1):
                    entry = IndexEntry.from_json(line, f"{work}: line {lines}")
                    index.write(dataclasses.replace(entry, shard=len(shards)).to_json().encode() + b"\n")
                    tokens += entry.tokens or 0
            if lines != done.samples:
                raise UserError(f"{work} has changed; the same command makes it again")
            shards.append(done.shard)
    if not shards:
        shutil.rmtree(output / WORK)
        (output / INDEX).unlink()
        first = f", first {faults.examples[0]}" if faults.examples else ""
        raise UserError(f"{output}: no sample of the source is good ({faults}{first}); check the source and options")
    facts = _facts(shared.source, shared.config, shared.counter)
    with writing(output / NOTE) as note:
        note.write(json.dumps({"plan": facts, "faults": faults.to_json()}, indent=1).encode())
    manifest = write_manifest(
        output, kinds, shards, TokenCounts(tokens, shared.counter.settings), shared.config.exif_orientation
    )
    shutil.rmtree(output / WORK)
    return manifest, faults
