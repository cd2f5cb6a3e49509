"""Precomputed latents: the same losses, resumed writing, and what is stale or damaged is never used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import make_sample

from scone_pl.data.datamodule import PackedDataModule
from scone_pl.data.latents import CHUNK, LatentCache
from scone_pl.data.packing import PackingConfig
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.seeding import seed_of
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.data.sources import Source
from scone_pl.data.stream import Batch
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.model.config import AutoencoderConfig
from scone_pl.model.sequence import SequenceFormat
from scone_pl.model.vae import Autoencoder, as_float, build_autoencoder

FLUX = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1, latent_channels=4)
NUM_SAMPLES = CHUNK + 6


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(FLUX).eval().requires_grad_(False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards((make_sample(i) for i in range(NUM_SAMPLES)), tmp_path / "set", samples_per_shard=40, progress=False)
    return tmp_path / "set"


@pytest.fixture
def write(folder: Path, packing: PackingConfig, sequence_format: SequenceFormat, autoencoder: Autoencoder) -> Any:
    def write(**changes: Any) -> tuple[LatentCache, list[int]]:
        changed = dataclasses.replace(packing, **changes)
        cache, shards = LatentCache.of(ShardSet(folder), changed, sequence_format, "a"), ShardSet(folder)
        encode = lambda images: [autoencoder.moments(as_float(image[None]))[0] for image in images]  # noqa: E731
        return cache, list(cache.write(shards, changed, sequence_format, encode))

    return write


@pytest.fixture
def first_batch(folder: Path, packing: PackingConfig, sequence_format: SequenceFormat, tokenizer: Tokenizer) -> Any:
    def first_batch(*, latents: bool, autoencoder: str = "a", **changes: Any) -> Batch:
        module = PackedDataModule(
            [Source(str(folder))], packing=dataclasses.replace(packing, **changes), seed=1, latents=latents
        )
        module.connect(sequence_format, tokenizer, autoencoder)
        return next(iter(module.train_dataloader()))

    return first_batch


def latents_of(batch: Batch, autoencoder: Autoencoder, *, sample: bool) -> list[torch.Tensor]:
    pack, generator = batch.sequence, torch.Generator().manual_seed(seed_of("posterior", batch.seed))
    return autoencoder.encode_each(pack.images, generator, sample=sample, encoded=pack.encoded)


@pytest.mark.parametrize("sample", [False, True])
def test_the_same_latents_and_draws_as_without(
    write: Any, first_batch: Any, autoencoder: Autoencoder, sample: bool
) -> None:
    write()
    without, with_cache = first_batch(latents=False), first_batch(latents=True)
    assert with_cache.sequence.encoded
    assert with_cache.sequence.splits == without.sequence.splits
    assert torch.equal(with_cache.sequence.vit_patches, without.sequence.vit_patches)
    assert torch.equal(with_cache.sequence.timestep_logits, without.sequence.timestep_logits)
    pairs = [latents_of(one, autoencoder, sample=sample) for one in (without, with_cache)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_killed_run_goes_on_and_sizes_are_beside_each_other(write: Any, first_batch: Any) -> None:
    cache, broken = write()
    assert broken == [0, 0]
    first, second = (file.read_bytes() for file in cache.chunks)
    cache.chunks[1].unlink()
    (cache.folder / "cache.json").unlink()
    with pytest.raises(UserError, match="no complete latents for these sizes"):
        first_batch(latents=True)
    before = cache.chunks[0].stat().st_mtime_ns
    write()
    assert [file.read_bytes() for file in cache.chunks] == [first, second]
    assert cache.chunks[0].stat().st_mtime_ns == before, "what is there is not computed again"
    small = ResizeLimits(max_size=24, min_size=16)
    with pytest.raises(UserError, match="no complete latents"):
        first_batch(latents=True, vae_resize=small)
    other, _ = write(vae_resize=small)
    assert other.folder.parent == cache.folder.parent
    assert first_batch(latents=True, vae_resize=small).sequence.encoded
    for changes in ({"autoencoder": "b"}, {"pixels": "fast"}, {"exif_orientation": "ignore"}):
        with pytest.raises(UserError, match="no complete latents"):
            first_batch(latents=True, **changes)


def test_stale_and_missing_files_are_refused(write: Any, first_batch: Any, folder: Path) -> None:
    cache, _ = write()
    cache.chunks[0].rename(folder / "aside")
    with pytest.raises(UserError, match=r"000000\.safetensors: missing"):
        first_batch(latents=True)
    (folder / "aside").rename(cache.chunks[0])
    recorded = json.loads((cache.folder / "cache.json").read_text())
    (cache.folder / "cache.json").write_text(json.dumps({**recorded, "data": "0"}))
    with pytest.raises(UserError, match="latents of earlier data"):
        first_batch(latents=True)
    with pytest.raises(UserError, match="latents of earlier data"):
        write()
    (cache.folder / "cache.json").unlink()
    (cache.folder / ".begun.json").write_text(json.dumps({**recorded, "data": "0"}))
    with pytest.raises(UserError, match="begun with earlier data"):
        write()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_damaged_files_are_counted_never_used(write: Any, first_batch: Any, damage: str) -> None:
    cache, _ = write()
    file = cache.chunks[0]
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    file.write_bytes(
        {
            "flip": bytes(content),
            "cut": bytes(content[: len(content) // 2]),
            "empty": b"",
            "other": cache.chunks[1].read_bytes(),
        }[damage]
    )
    read = [_reads(cache, i) for i in range(NUM_SAMPLES)]
    assert sum(not one for one in read[:CHUNK]) == (1 if damage == "flip" else CHUNK)
    assert all(read[CHUNK:])
    if damage != "flip":
        batch = first_batch(latents=True)
        assert batch.skipped["damaged latents"] > 0
        assert batch.sequence.encoded


def _reads(cache: LatentCache, i: int) -> bool:
    try:
        return bool(cache.read(i))
    except BrokenSampleError as error:
        return error.reason != "damaged latents"
