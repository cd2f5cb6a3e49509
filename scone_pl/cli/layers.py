"""`python -m scone_pl layers` compares the decoder layers of a checkpoint as sources of the bridge's similarity."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from scone_pl.analysis.drawing import MapRow, draw_maps
from scone_pl.analysis.measures import exchanged, measure, subjects_of
from scone_pl.analysis.report import report_of, words_of
from scone_pl.analysis.similarity import EXPERTS, PACK_TOKENS, ImageMaps, read_images
from scone_pl.checkpoints.model import check_folder, from_pretrained, read_config
from scone_pl.data.decoding import ExifOrientation, decode_rgb
from scone_pl.data.inputs import open_input
from scone_pl.data.packing import PackingConfig
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.selection import check_images
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.files import write_json
from scone_pl.messages import warn
from scone_pl.outputs import check_output_folder
from scone_pl.progress import Progress
from scone_pl.ranges import check_whole
from scone_pl.sampling.checks import as_device, as_dtype

SHOWN = 8
"""Maximum rows of maps.png."""
Pair = tuple[ImageMaps, ImageMaps | None]


def layers(
    checkpoint: Path,
    data: str,
    samples: int = 64,
    output: Path | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    tokens: int = PACK_TOKENS,
    packing: PackingConfig | None = None,
) -> int:
    """Compare the decoder layers as sources of the bridge's similarity; suggest one, with and without labels.

    Labels are the samples' `candidates`, boxes of target and distractor subjects in the references. Without any, a
    layer is judged by how much its similarities change when the instruction is exchanged.

    Args:
        checkpoint: checkpoint folder: BAGEL's, Scone's, or one that training here wrote.
        data: shard set (folder or URL), JSONL file or folder of them, or parquet; a target is not needed.
        samples: the first so many that have references and an instruction are read.
        output: folder for layers.json (all numbers) and maps.png; by default nothing is written.
        device: cpu, cuda, cuda:1, ...; auto = a GPU if there is one.
        dtype: of weights and activations; auto = bfloat16 on a GPU, else float32.
        tokens: maximum tokens per forward pass; fewer need less memory (a longer sample is a pass by itself).
        packing: sizes of images, as `data.packing` of the recipe in question; by default those of sampling.
    """
    check_whole("--samples", samples, minimum=1)
    check_whole("--tokens", tokens, minimum=1)
    if output is not None:
        check_output_folder(output, files=("layers.json", "maps.png"))
    chosen_device = as_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    kind = as_dtype(("bfloat16" if chosen_device.type == "cuda" else "float32") if dtype == "auto" else dtype)
    tokenizer = Tokenizer.from_folder(check_folder(checkpoint))
    config = read_config(checkpoint)
    tokenizer.check_embedding(config.decoder.vocab_size)
    sequence_format = config.sequence_format(tokenizer.special)
    packing = packing or PackingConfig.for_inference(sequence_format)
    packing.check(sequence_format)
    chosen = choose_samples(data, samples)
    for sample in chosen:
        tokenizer.encode(sample.instruction)  # unknown words show before the weights are read
    model = from_pretrained(checkpoint, dtype=kind, device=chosen_device).requires_grad_(False)
    pairs = read_images(model, tokenizer, chosen, packing, exchanged([s.instruction for s in chosen]), tokens)
    rows: list[MapRow] = []
    try:
        readings = measure(_watched(pairs, chosen, rows, packing.exif_orientation), chosen)
    except torch.OutOfMemoryError:
        raise UserError(f"out of memory on {chosen_device}; lower --tokens, or the images' sizes (--packing)") from None
    report = {"checkpoint": str(checkpoint), "data": data, "samples": len(chosen), **report_of(readings)}
    print(
        f"{checkpoint}: {len(chosen)} samples of {data}, {report['images']} reference images, "
        f"{report['labelled_images']} of them with boxes of target and distractor subjects\n\n{words_of(report)}"
    )
    if output is not None:
        draw_maps(rows, output / "maps.png")
        write_json(report, output / "layers.json")
        print(f"\n{output / 'layers.json'}   {output / 'maps.png'}")
    return 0


def choose_samples(data: str, count: int) -> list[Sample]:
    """The first `count` whole samples of a source that have references and an instruction.

    Raises:
        UserError: there is no such source, or no such sample in it.
    """
    if "://" not in data and not Path(data).exists():
        raise UserError(
            f"{data}: no such file or folder; --data is a shard set, a JSONL file, a folder of them or parquet"
        )
    source = open_input(data, require_target=False)
    chosen: list[Sample] = []
    broken: list[BrokenSampleError] = []
    for _, found in source.read(0, len(source)):
        if isinstance(found, BrokenSampleError):
            broken.append(found)
        elif found.references and found.instruction.strip():
            try:
                chosen.append(_checked(found))
            except BrokenSampleError as error:
                broken.append(error)
        if len(chosen) == count:
            break
    if not chosen:
        why = f"; {len(broken)} are broken, the first: {broken[0]}" if broken else ""
        raise UserError(f"{data}: no sample with reference images and an instruction{why}")
    if broken:
        warn(f"{data}: {len(broken)} broken samples are left out, the first: {broken[0]}")
    return chosen


def _checked(sample: Sample) -> Sample:
    if sample.candidates is not None and len(sample.candidates) != len(sample.references):
        raise BrokenSampleError("wrong candidates", f"{sample.key}: candidates are not one list a reference")
    check_images(sample)
    return sample


def _watched(
    pairs: Iterator[Pair], samples: Sequence[Sample], rows: list[MapRow], exif_orientation: ExifOrientation
) -> Iterator[Pair]:
    """`pairs` as they come, with a progress bar; the rows of maps.png go to `rows`.

    One reference per sample is shown, one with boxes if there is any.
    """
    labelled = [
        (i, next((j for j in range(len(s.references)) if subjects_of(s, j)), None)) for i, s in enumerate(samples)
    ]
    positions = [position for position in labelled if position[1] is not None] or [(i, 0) for i in range(len(samples))]
    shown = set(positions[:SHOWN])
    with Progress("reading layers", len(samples), unit="samples") as bar:
        for maps, changed in pairs:
            if (maps.sample, maps.image) in shown:
                rows.append(_row(samples[maps.sample], maps, exif_orientation))
            yield maps, changed
            bar.update(maps.sample + 1)


def _row(sample: Sample, maps: ImageMaps, exif_orientation: ExifOrientation) -> MapRow:
    image = decode_rgb(sample.references[maps.image], exif_orientation=exif_orientation)
    image.thumbnail((256, 256))
    lines = textwrap.wrap(sample.instruction, 40, max_lines=5, placeholder=" ...")
    return MapRow(
        label="\n".join(lines),
        image=np.asarray(image),
        maps={expert: getattr(maps, expert) for expert in EXPERTS},
        targets=[s.box for s in subjects_of(sample, maps.image) if s.is_target],
    )
