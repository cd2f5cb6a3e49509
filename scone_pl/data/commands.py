"""`python -m scone_pl shards convert|verify|stats`."""

from __future__ import annotations

import sys
from typing import Literal

from jsonargparse import auto_cli

from scone_pl.data.convert import Faults, convert_parquet
from scone_pl.data.inspection import shard_statistics, verify_shards
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer, byte_tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.model.sequence import SequenceFormat


def convert(
    source: str,
    output: str,
    subset: str | None = None,
    kind: Literal["single", "multi"] | None = None,
    samples_per_shard: int = 1000,
    limit: int | None = None,
    shrink: int | None = None,
    decode: bool = True,
) -> int:
    """Convert the published Scone-S2I parquet layout to shards.

    Args:
        source: root of the parquet data set, one subset's folder, or one parquet file.
        output: folder to write the shards to.
        subset: convert only the subset of this name.
        kind: kind of the samples; by default "multi" where the subset's name says so.
        samples_per_shard: samples of a tar.
        limit: stop after so many samples.
        shrink: re-encode images as JPEG with at most so many pixels on the long side.
        decode: decode every image now to find damaged ones; otherwise only their headers are read.
    """
    manifest, faults = convert_parquet(
        source,
        output,
        subset=subset,
        kind=kind,
        samples_per_shard=samples_per_shard,
        limit=limit,
        shrink=shrink,
        decode=decode,
    )
    _say(f"{output}: {manifest.samples} samples in {len(manifest.shards)} shards, {manifest.bytes / 1e6:.1f} MB")
    _say_faults(faults, "left out")
    return 0


def verify(folder: str) -> int:
    """Decode everything in a shard set, check it against checksums and index; exits with 1 if anything is wrong.

    Args:
        folder: folder of the shard set.
    """
    samples, faults = verify_shards(folder)
    _say(f"{folder}: {samples} samples looked at, {faults.total} problems")
    _say_faults(faults, "problems")
    return 1 if faults.total else 0


def stats(
    folder: str,
    token_budget: int = 26496,
    tokenizer: str | None = None,
    vae_max_size: int = 1024,
    vae_min_size: int = 512,
    vit_max_size: int = 518,
    vit_min_size: int = 224,
    latent_stride: int = 16,
    vit_patch_size: int = 14,
    targets_per_sample: int = 1,
    lookahead: int = 64,
    ranks: int = 8,
) -> int:
    """Print what training will see of a shard set: sizes, tokens, how full packs are, steps an epoch.

    Args:
        folder: folder of the shard set.
        token_budget: most tokens of a packed sequence.
        tokenizer: checkpoint folder with tokenizer files; by default bytes are counted, which is more than tokens.
        vae_max_size: longest side of VAE images in pixels.
        vae_min_size: shorter side of VAE images, at least.
        vit_max_size: longest side of ViT images in pixels.
        vit_min_size: shorter side of ViT images, at least.
        latent_stride: pixels a side for one latent token.
        vit_patch_size: pixels a side for one ViT token.
        targets_per_sample: noise levels per sample and context.
        lookahead: samples among which those that fill a pack best are chosen.
        ranks: GPUs that share an epoch.
    """
    words = byte_tokenizer() if tokenizer is None else Tokenizer.from_folder(tokenizer)
    try:
        vae = ResizeLimits(max_size=vae_max_size, min_size=vae_min_size)
        vit = ResizeLimits(max_size=vit_max_size, min_size=vit_min_size)
    except ValueError as error:
        raise UserError(f"shards stats: {error}") from None
    packing = PackingConfig(
        token_budget=token_budget,
        targets_per_sample=targets_per_sample,
        vae_resize=vae,
        vit_resize=vit,
        lookahead=lookahead,
    )
    form = SequenceFormat(
        special=words.special,
        latent_stride=latent_stride,
        latent_positions_per_side=vae_max_size,
        vit_patch_size=vit_patch_size,
        vit_positions_per_side=vit_max_size,
    )
    _say(shard_statistics(folder, form, words, packing).report(ranks))
    return 0


def main(args: list[str]) -> int:
    """Runs one of the commands; the exit status."""
    return auto_cli([convert, verify, stats], args=args, prog="python -m scone_pl shards")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say_faults(faults: Faults, what: str) -> None:
    if faults.total:
        _say(f"{what}: {faults}")
        for example in faults.examples:
            _say(f"  {example}")
        if faults.total > len(faults.examples):
            _say(f"  ... and {faults.total - len(faults.examples)} more")
