"""`python -m scone_pl shards convert|verify|stats`."""

from __future__ import annotations

import os

from scone_pl.data import convert as conversion
from scone_pl.data.fields import FieldNames
from scone_pl.data.inputs import Format, open_input
from scone_pl.data.jobs import check_workers
from scone_pl.data.packing import PackingConfig
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
    config: ConvertConfig = ConvertConfig(),  # noqa: B008 (immutable)
    workers: int = _CORES,
) -> int:
    """Convert parquet, JSONL + images, or another shard set to shards; run the same command again to resume.

    Args:
        source: parquet: root of the Scone-S2I data set (without --subset all its subsets become one set), one
            subset's folder, or one file. jsonl: a file with an object a line or one list of objects, or a folder of
            such files. shards: folder or URL of a set.
        output: Folder to write the shards to.
        format: Format of the source; auto = detected from its contents.
        subset: parquet: only the subset of this name.
        fields: jsonl, parquet: names of the fields or columns.
        image_root: jsonl, parquet: what image paths are relative to; by default the file's folder.
        require_target: jsonl, parquet: rows without a target are skipped; false for sets to generate from.
        require_references: jsonl, parquet: if any row has references, rows without are skipped (unless their list is
            empty); false keeps such rows, and accepts sets whose image fields nothing reads.
        config: which samples to keep, and how to store them.
        workers: Number of processes; by default one per core.
    """
    check_workers(workers)
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
    print(f"{source}: {len(opened)} items; read: {opened.describe()}")
    before = conversion.finished(opened, output, config)
    manifest, faults = before or conversion.convert(opened, output, config, workers=workers)
    size = f"{len(manifest.shards)} shards, {manifest.bytes / 1e6:.1f} MB"
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(manifest.kinds.items()))
    print(f"{output}: {'already converted: ' if before else ''}{manifest.samples} samples ({kinds}) in {size}")
    print(faults.report("skipped", 20, unlisted=FILTER_REASONS), end="")
    return 0


def verify(folder: str, workers: int = _CORES, show: int = 100) -> int:
    """Decode everything in a shard set, check it against checksums and index; exits with 1 if anything is wrong.

    Args:
        folder: folder or URL of the shard set.
        workers: Number of processes; by default one per core.
        show: Problems to list; all are counted.
    """
    check_workers(workers)
    check_whole("--show", show)
    result = verify_shards(folder, workers=workers)
    print(f"{folder}: {result.samples} samples checked, {result.faults.total} problems")
    print(result.faults.report("problems", show, unlisted=FILTER_REASONS), end="")
    if result.by_shard:
        print("by file: " + ", ".join(f"{file}: {count}" for file, count in sorted(result.by_shard.items())))
    return 1 if result.faults.total else 0


def stats(
    folder: str,
    packing: PackingConfig = PackingConfig(),  # noqa: B008 (immutable)
    tokenizer: str | None = None,
    latent_stride: int = 16,
    vit_patch_size: int = 14,
    ranks: int = 8,
    contact_sheet: str | None = None,
) -> int:
    """Print statistics of a shard set: image sizes, tokens, packing efficiency, steps per epoch.

    Args:
        folder: folder or URL of the shard set.
        packing: As `data.packing` of a recipe.
        tokenizer: Checkpoint folder with tokenizer files; by default bytes are counted, which is more than tokens.
        latent_stride: Side of a latent token in pixels.
        vit_patch_size: Side of a ViT token in pixels.
        ranks: Number of ranks that share an epoch.
        contact_sheet: Image of some samples to write (.png, .jpg, .jpeg or .webp); by default
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
    print(shard_statistics(folder, sequence_format, words, packing).report(ranks))
    write_image(draw_contact_sheet(folder, exif_orientation=packing.exif_orientation), sheet)
    print(f"contact sheet     {sheet}")
    return 0
