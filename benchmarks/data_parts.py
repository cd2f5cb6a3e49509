"""The parts of `data.py` that compare nothing with a baseline of theirs: packing, prefetch, memory."""

from __future__ import annotations

import functools
import io
import os
import resource
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from scone_pl.data.packing import PackingConfig, sample_length
from scone_pl.data.planning import next_fit_packs, plan_packs
from scone_pl.data.sample import Sample
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Mixture, Source
from scone_pl.data.storage import StorageConfig
from scone_pl.data.stream import Cursor, PackMaker, PackStream
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.model.sequence import SequenceFormat

BUDGET = 26496


def simulated_lengths(count: int = 56_751, seed: int = 0) -> np.ndarray:
    """(count,) int64: tokens of samples with 1 to 4 references of usual sizes, as many as Scone-S2I-57K has."""
    rng = np.random.default_rng(seed)
    references = rng.choice([1, 2, 3, 4], count, p=[0.45, 0.35, 0.15, 0.05])
    vae = rng.choice([1024, 2048, 3072, 4096], (count, 5))
    vit = rng.integers(256, 1370, (count, 4))
    used = np.arange(5) <= references[:, None]
    return (vae * used).sum(1) + (vit * used[:, 1:]).sum(1) + 4 * references + 2 + rng.integers(10, 80, count)


def measure_packing(shards: Path, sequence_format: SequenceFormat) -> None:
    """How full packs are, and how long planning takes."""
    words, packing = byte_tokenizer(), PackingConfig()
    sample = np.array([sample_length(entry, sequence_format, words, packing) for entry in ShardSet(shards).index])
    sample = np.random.default_rng(0).permutation(sample)
    print(f"\npacking to {BUDGET} tokens: share of the tokens used (seconds to plan an epoch)")
    for name, lengths in (("the sample", sample), ("simulated 57K", simulated_lengths())):
        greedy = next_fit_packs(lengths, BUDGET)
        row = [f"first come {greedy.efficiency(lengths, BUDGET):.1%} in {len(greedy.packs)} packs"]
        for lookahead in (16, 64, 256):
            began = time.perf_counter()
            plan = plan_packs(lengths, BUDGET, lookahead)
            seconds = time.perf_counter() - began
            share = plan.efficiency(lengths, BUDGET)
            row.append(f"look-ahead {lookahead}: {share:.1%} in {len(plan.packs)} ({seconds:.1f} s)")
        print(f"  {name} ({len(lengths)} samples, {len(greedy.over_budget)} too long): " + "; ".join(row))


class _Slow(SimpleHTTPRequestHandler):
    delay = 0.0

    def do_GET(self) -> None:
        if self.path.endswith(".tar"):
            time.sleep(self.delay)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


def measure_prefetch(scratch: Path, delay: float = 0.4, step: float = 0.15, steps: int = 60) -> None:
    """Share of the time that steps wait for a server that takes `delay` seconds a shard."""
    sequence_format, words = _small_model()
    folder = scratch / "remote"
    write_shards(_small_samples(600), folder, samples_per_shard=20, progress=False)
    _Slow.delay = delay
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Slow, directory=str(scratch)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/remote"
    print(f"\na server that takes {delay} s a shard, steps of {step} s: share of the time spent waiting for data")
    for packs in (0, 8, 16):
        storage = StorageConfig(cache_dir=str(scratch / f"cache{packs}"), prefetch_packs=packs)
        packing = _small_packing()
        mixture = Mixture([Source(url)], sequence_format, words, packing, storage, shuffle_window=2)
        stream = iter(PackStream(PackMaker(mixture, sequence_format, words, packing, seed=0), Cursor()))
        began, waited = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            next(stream)
            waited += time.perf_counter() - asked
            time.sleep(step)
        print(f"  prefetch_packs {packs:2}: {waited / (time.perf_counter() - began):.1%}")
    server.shutdown()


def measure_memory(scratch: Path, samples: int) -> None:
    """Resident memory of a reader over an epoch of `samples` different samples, and on into the next."""
    sequence_format, words = _small_model()
    folder = scratch / "many"
    write_shards(_small_samples(samples), folder, samples_per_shard=5000, progress=False)
    packing = _small_packing()
    mixture = Mixture([Source(str(folder))], sequence_format, words, packing)
    stream = PackStream(PackMaker(mixture, sequence_format, words, packing, seed=0), Cursor())
    marks, seen = [], 0
    for batch in stream:
        if seen >= len(marks) * samples / 8:
            marks.append(resident())
        seen += batch.sequence.num_samples
        if seen >= 1.26 * samples:
            break
    print(f"\nmemory of a reader in MB, each {samples // 8} of {seen} samples (a new epoch at {samples}):")
    peak = resource.getrusage(0).ru_maxrss * 1024 / 1e6
    print("  " + ", ".join(f"{mark:.0f}" for mark in marks) + f"; peak {peak:.0f}")


def resident() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _small_model() -> tuple[SequenceFormat, object]:
    words = byte_tokenizer()
    sizes = {"latent_stride": 8, "latent_positions_per_side": 8, "vit_patch_size": 8, "vit_positions_per_side": 8}
    return SequenceFormat(special=words.special, **sizes), words


def _small_packing() -> PackingConfig:
    limits = ResizeLimits(max_size=32, min_size=16)
    return PackingConfig(token_budget=300, vae_resize=limits, vit_resize=limits)


def _small_samples(count: int) -> Iterator[Sample]:
    images = []
    for number in range(32):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16 + 8 * (number % 3), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    return (
        Sample(
            key=f"s{i:07d}",
            references=(images[i % 32],) * (1 + i % 2),
            instruction="put it on a table" * (1 + i % 3),
            target=images[(i + 1) % 32],
        )
        for i in range(count)
    )
