"""`python -m scone_pl shards convert|verify|stats`."""

from __future__ import annotations

import os
import sys
from typing import Literal

from scone_pl.data import convert as conversion
from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.faults import Faults
from scone_pl.data.fields import FieldNames
from scone_pl.data.inputs import Format, open_input
from scone_pl.data.jobs import check_workers
from scone_pl.data.packing import PackingConfig
from scone_pl.data.sample import Kind
from scone_pl.data.selection import FILTER_REASONS, ConvertConfig
from scone_pl.data.statistics import contact_sheet as draw_contact_sheet
from scone_pl.data.statistics import shard_statistics
from scone_pl.data.tokenizer import Tokenizer, byte_tokenizer
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError
from scone_pl.image_files import check_image_output, write_image
from scone_pl.model.sequence import SequenceFormat
from scone_pl.outputs import check_output_folder
from scone_pl.ranges import check_whole

_CORES = len(os.sched_getaffinity(0))


def convert(
    source: str,
    output: str,
    format: Format = "auto",
    subset: str | None = None,
    fields: FieldNames = FieldNames(),  # noqa: B008 (immutable)
    image_root: str | None = None,
    require_target: bool = True,
    require_references: bool = True,
    kind: Kind | None = None,
    only: Kind | None = None,
    min_side: int = 0,
    limit: int | None = None,
    samples_per_shard: int = 1000,
    shrink: int | None = None,
    reencode: Literal["jpeg", "png", "webp"] | None = None,
    quality: int = 85,
    exif_orientation: ExifOrientation = "apply",
    decode: bool = True,
    workers: int = _CORES,
) -> int:
    """Convert parquet, JSONL + images, or another shard set to shards; the same command goes on after a stop.

    Args:
        source: parquet: root of the Scone-S2I data set (without --subset all its subsets become one set), one
            subset's folder, or one file. jsonl: a file with an object a line or one list of objects, or a folder of
            such files. shards: folder or URL of a set.
        output: folder to write the shards to.
        format: of the source; auto tells by what is there.
        subset: parquet: only the subset of this name.
        fields: jsonl, parquet: names of the fields or columns.
        image_root: jsonl, parquet: what image paths are relative to; by default the file's folder.
        require_target: jsonl, parquet: a row without a target is left out; false for sets to generate from.
        require_references: jsonl, parquet: where rows have references, one without is left out (an empty list is
            none on purpose); false takes such rows, and sets that only have images which nothing reads.
        kind: kind of all samples; by default what the source says (parquet: multi where the subset's name says so).
        only: keep samples of this kind only.
        min_side: leave out samples with an image whose shorter side has fewer pixels.
        limit: stop after so many good samples.
        samples_per_shard: items of the source that make a tar.
        shrink: re-encode images so that the long side has at most so many pixels.
        reencode: re-encode images in this format; by default their bytes are kept (with --shrink: jpeg).
        quality: of re-encoded JPEG and WebP images.
        exif_orientation: apply = sizes in the index are those of images turned as their EXIF orientation says, and
            re-encoded images are turned; ignore = neither is (the release). Images that are not turned keep their
            orientation data, so data.packing.exif_orientation can still be either.
        decode: decode every image now to find damaged ones; otherwise only their headers are read.
        workers: processes; by default one a core.
    """
    check_workers(workers)
    config = ConvertConfig(
        samples_per_shard=samples_per_shard,
        limit=limit,
        kind=kind,
        only=only,
        min_side=min_side,
        shrink=shrink,
        reencode=reencode,
        quality=quality,
        exif_orientation=exif_orientation,
        decode=decode,
    )
    if "://" not in source and os.path.realpath(source) == os.path.realpath(output):
        raise UserError(f"{output} is the source; choose another output folder")
    check_output_folder(output)
    opened = open_input(
        source,
        format,
        subset=subset,
        fields=fields,
        image_root=image_root,
        require_target=require_target,
        require_references=require_references,
        has_field_options=True,
    )
    _say(f"{source}: {len(opened)} items; read: {opened.describe()}")
    before = conversion.finished(opened, output, config)
    manifest, faults = before or conversion.convert(opened, output, config, workers=workers)
    size = f"{len(manifest.shards)} shards, {manifest.bytes / 1e6:.1f} MB"
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(manifest.kinds.items()))
    _say(f"{output}: {'already converted: ' if before else ''}{manifest.samples} samples ({kinds}) in {size}")
    _say_faults(faults, "left out", 20)
    return 0


def verify(folder: str, workers: int = _CORES, show: int = 100) -> int:
    """Decode everything in a shard set, check it against checksums and index; exits with 1 if anything is wrong.

    Args:
        folder: folder or URL of the shard set.
        workers: processes; by default one a core.
        show: problems to list; all are counted.
    """
    check_workers(workers)
    check_whole("--show", show)
    verdict = verify_shards(folder, workers=workers)
    _say(f"{folder}: {verdict.samples} samples looked at, {verdict.faults.total} problems")
    _say_faults(verdict.faults, "problems", show)
    if verdict.by_shard:
        _say("by file: " + ", ".join(f"{file}: {count}" for file, count in sorted(verdict.by_shard.items())))
    return 1 if verdict.faults.total else 0


def stats(
    folder: str,
    packing: PackingConfig = PackingConfig(),  # noqa: B008 (immutable)
    tokenizer: str | None = None,
    latent_stride: int = 16,
    vit_patch_size: int = 14,
    ranks: int = 8,
    contact_sheet: str | None = None,
) -> int:
    """Print what training will see of a shard set: sizes, tokens, how full packs are, steps an epoch.

    Args:
        folder: folder or URL of the shard set.
        packing: as `data.packing` of a recipe.
        tokenizer: checkpoint folder with tokenizer files; by default bytes are counted, which is more than tokens.
        latent_stride: pixels a side for one latent token.
        vit_patch_size: pixels a side for one ViT token.
        ranks: GPUs that share an epoch.
        contact_sheet: image of some samples to write (.png, .jpg, .jpeg or .webp); by default
            runs/contact_sheets/NAME.png.
    """
    for name, value in (("ranks", ranks), ("latent_stride", latent_stride), ("vit_patch_size", vit_patch_size)):
        check_whole(f"--{name}", value, minimum=1)
    sheet = check_image_output(
        contact_sheet or f"runs/contact_sheets/{folder.rstrip('/').rsplit('/', 1)[-1]}.png", "--contact_sheet"
    )
    words = byte_tokenizer() if tokenizer is None else Tokenizer.from_folder(tokenizer)
    sequence_format = SequenceFormat(
        special=words.special,
        latent_stride=latent_stride,
        latent_positions_per_side=packing.vae_resize.max_size,
        vit_patch_size=vit_patch_size,
        vit_positions_per_side=packing.vit_resize.max_size,
    )
    _say(shard_statistics(folder, sequence_format, words, packing).report(ranks))
    write_image(draw_contact_sheet(folder, exif_orientation=packing.exif_orientation), sheet)
    _say(f"contact sheet     {sheet}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say_faults(faults: Faults, what: str, show: int) -> None:
    if not faults.total:
        return
    _say(f"{what}: {faults}")
    examples = faults.listed(show, exclude=FILTER_REASONS)
    for example in examples:
        _say(f"  {example}")
    unlisted = faults.total - sum(faults.counts[reason] for reason in FILTER_REASONS) - len(examples)
    if unlisted > 0:
        _say(f"  ... and {unlisted} more")
