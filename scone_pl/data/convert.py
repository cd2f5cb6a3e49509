"""From any source to shards: in parallel, going on where it was stopped, a sample at a time.

The items of a source are cut into ranges of `samples_per_shard`; each range becomes one tar, made by one process.
Until all are done the output folder holds a folder `.convert` with the settings, and per finished range its index
lines and counts; at the end these become `index.jsonl` and `manifest.json`. The same source and settings give the
same bytes, whatever the number of workers and however often it was stopped.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scone_pl.data.faults import Faults
from scone_pl.data.index import INDEX, IndexEntry
from scone_pl.data.inputs import Input
from scone_pl.data.jobs import Tick, run_jobs
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.seeding import seed_of
from scone_pl.data.selection import ConvertConfig, as_stored
from scone_pl.data.shard_writer import complete_or_absent, describe, write_manifest, write_tar
from scone_pl.data.shards import MANIFEST, Manifest, ShardInfo, TokenCounts
from scone_pl.data.token_counts import TokenCounter
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError

WORK = ".convert"


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
        output: folder of the data set; must not hold a complete one.
        config: what to take and how to store it.
        tokenizer: for the token counts in index and manifest, see `TokenCounter.published`.
        workers: processes.
        progress: whether to show a progress bar.

    Raises:
        UserError: nothing good in the source, or `output` holds another data set or another unfinished conversion,
            or another process is converting into it.
    """
    config, output = config or ConvertConfig(), Path(output)
    counter = TokenCounter.published(tokenizer)
    with _claimed(output):
        _begin(output, source, config, counter)
        shared = _Shared(source, config, output, _doubled(source), counter)
        return _convert_all(shared, workers, progress)


def _convert_all(shared: _Shared, workers: int, progress: bool) -> tuple[Manifest, Faults]:
    source, config, output = shared.source, shared.config, shared.output
    size = config.samples_per_shard
    ranges = [_Range(n, start, min(start + size, len(source))) for n, start in enumerate(range(0, len(source), size))]
    total = 0
    accepted: list[_Done] = []
    with tqdm(total=len(source), desc=output.name, unit="item", disable=not progress, smoothing=0.05) as bar:
        for done in run_jobs(_convert_range, shared, ranges, workers=min(workers, len(ranges)), bar=bar):
            if config.limit is not None and total + done.samples > config.limit:
                _remove(done.range, output)
                done = _convert_range(shared, dataclasses.replace(done.range, most=config.limit - total), lambda: None)
            accepted.append(done)
            total += done.samples
            if total == config.limit:
                break
    return _finish(output, accepted, ranges, shared.counter.settings)


@contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """Keeps a second process out, which would write the same files.

    Raises:
        UserError: `output` holds a complete data set, or another process is at work in it.
    """
    if (output / MANIFEST).exists():
        raise UserError(f"{output} already holds a data set; remove it or choose another folder")
    (output / WORK).mkdir(parents=True, exist_ok=True)
    with (output / WORK / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output}: another process is converting into it; wait, or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _begin(output: Path, source: Input, config: ConvertConfig, counter: TokenCounter) -> None:
    plan = output / WORK / "plan.json"
    facts = {"source": source.identity(), "config": asdict(config), "tokens": counter.settings}
    text = json.dumps(facts, indent=1)
    if plan.exists() and plan.read_text() != text:
        raise UserError(
            f"{output} holds an unfinished conversion of another source or with other settings; remove it, "
            "or give the same ones to go on"
        )
    with complete_or_absent(plan) as file:
        file.write(text.encode())


def _doubled(source: Input) -> frozenset[int]:
    hashes = np.fromiter((seed_of(key) for key in source.keys()), dtype=np.int64, count=len(source))  # noqa: SIM118
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), dtype=bool)
    again[first] = False
    return frozenset(np.flatnonzero(again).tolist())


def _convert_range(shared: _Shared, range_: _Range, tick: Tick) -> _Done:
    """Makes one tar, unless an earlier process has."""
    tar, index, counts = range_.files(shared.output)
    if counts.exists():
        fields = json.loads(counts.read_text())
        if fields["most"] == range_.most:
            for _ in range(range_.start, range_.stop):
                tick()
            faults = Faults(Counter(fields["faults"]["counts"]), fields["faults"]["examples"])
            return _Done(range_, ShardInfo(**fields["shard"]) if fields["shard"] else None, fields["kinds"], faults)
    faults = Faults()
    entries = write_tar(_good_samples(shared, range_, faults, tick), tar, range_.number)
    with complete_or_absent(index) as file:
        for entry in entries:
            file.write(dataclasses.replace(entry, tokens=shared.counter(entry)).to_json().encode() + b"\n")
    shard = describe(tar, len(entries)) if entries else None
    kinds = dict(Counter(entry.kind for entry in entries))
    record = {
        "most": range_.most,
        "shard": shard and asdict(shard),
        "kinds": kinds,
        "faults": {"counts": dict(faults.counts), "examples": faults.examples},
    }
    with complete_or_absent(counts) as file:
        file.write(json.dumps(record).encode())
    return _Done(range_, shard, kinds, faults)


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


def _finish(
    output: Path, accepted: list[_Done], ranges: list[_Range], settings: dict[str, Any]
) -> tuple[Manifest, Faults]:
    faults, kinds, shards, tokens = Faults(), Counter[str](), [], 0
    for range_ in ranges[len(accepted) :]:
        _remove(range_, output)
    for part in output.glob(".*.part"):
        part.unlink()
    with complete_or_absent(output / INDEX) as index:
        for done in accepted:
            faults.merge(done.faults)
            kinds.update(done.kinds)
            if done.shard is None:
                continue
            with done.range.files(output)[1].open("rb") as lines:
                for line in lines:
                    entry = dataclasses.replace(IndexEntry.from_json(line), shard=len(shards))
                    index.write(entry.to_json().encode() + b"\n")
                    tokens += entry.tokens or 0
            shards.append(done.shard)
    if not shards:
        shutil.rmtree(output / WORK)
        (output / INDEX).unlink()
        first = f", first {faults.examples[0]}" if faults.examples else ""
        raise UserError(f"{output}: no sample of the source is good ({faults}{first}); check the source and options")
    manifest = write_manifest(output, kinds, shards, TokenCounts(tokens, settings))
    shutil.rmtree(output / WORK)
    return manifest, faults
