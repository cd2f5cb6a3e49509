"""Prompts: built from images and an instruction, or extracted from a packed training sequence."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from PIL import Image
from torch import Tensor

from scone_pl.data.packing import PackingConfig, prepare_reference
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.sequence import PackedSequence, SequenceFormat, SplitKind
from scone_pl.model.vae import as_float
from scone_pl.sampling.context import Prompt

PUBLISHED_SIDE = 1024
"""Pixels a side of all published images (docs/benchmarks.md 2)."""


def make_prompt(
    images: Sequence[Image.Image],
    instruction: str,
    size: tuple[int, int],
    sequence_format: SequenceFormat,
    tokenizer: Tokenizer,
    packing: PackingConfig,
    negative: str | None = None,
) -> Prompt:
    """A prompt of RGB reference images and an instruction.

    Args:
        images: in the order in which the instruction counts them.
        instruction: what to generate; an empty one is encoded as begin and end tokens, as the release does.
        size: height and width of the target in pixels.
        sequence_format: of the model.
        tokenizer: of the model.
        packing: sizes to which references are brought; `PackingConfig.for_inference` are the release's.
        negative: negative prompt; None = guidance starts from no instruction.

    Raises:
        UserError: the instruction has a word that a word tokenizer does not know.
    """
    try:
        prepared = [prepare_reference(i, sequence_format, packing, references=len(images)) for i in images]
    except BrokenSampleError as error:
        raise UserError(f"{error.reason}: {error}") from None
    references = tuple((r.vit if r.vae is None else r.vae, r.vit) for r in prepared)
    negative_ids = None if negative is None else tuple(tokenizer.encode(negative))
    return Prompt(references, tuple(tokenizer.encode(instruction)), size, negative_ids)  # type: ignore[arg-type]  # references are tensors here


def image_size(sequence_format: SequenceFormat, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Height and width in pixels, checked; None = 1024, or the largest that the position table holds.

    Raises:
        UserError: a side that is no multiple of a token's or over the position table; the message says what would do.
    """
    stride = sequence_format.latent_stride
    largest = sequence_format.latent_positions_per_side * stride
    sides = []
    for name, side in (("height", height), ("width", width)):
        side = min(PUBLISHED_SIDE // stride * stride, largest) if side is None else side
        if side < stride or side % stride:
            near = max(stride, min(largest, round(side / stride) * stride))
            raise UserError(f"{name} {side} is not a positive multiple of {stride} pixels; use {near}")
        if side > largest:
            raise UserError(f"{name} {side} is over this checkpoint's position table; use at most {largest}")
        sides.append(side)
    return sides[0], sides[1]


def prompts_of(pack: PackedSequence, size: tuple[int, int] | None = None) -> list[Prompt]:
    """References, instruction and target size of every sample.

    Args:
        pack: the samples.
        size: height and width in pixels for samples without a target; a target keeps its own.

    Raises:
        ValueError: a sample has no target and there is no `size`.
    """
    vit_images = _vit_images(pack)
    prompts = []
    for splits in pack.by_sample:
        vit = {s.image: vit_images[s.start] for s in splits if s.kind == SplitKind.VIT}
        vae = {s.image: as_float(pack.images[s.pixels]) for s in splits if s.kind == SplitKind.VAE}  # type: ignore[index]  # images have pixels and grids
        if pack.layout.single_stream:
            vae = vit
        references = tuple((vae[image], shown) for image, shown in vit.items() if image in vae)
        targets = tuple(s.targets for s in splits if s.kind == SplitKind.VIT and s.image in vae)
        text_ids = pack.instructions[splits[0].sample]
        if size is None or splits[-1].kind == SplitKind.TARGET:
            height, width = target_image(pack, splits[-1].sample).shape[-2:]
        else:
            height, width = size
        prompts.append(
            Prompt(references, text_ids, (height, width), targets=targets, names=pack.names[splits[0].sample])
        )
    return prompts


def target_image(pack: PackedSequence, sample: int) -> Tensor:
    """(3, H, W) in [-1, 1]: the clean target of a sample."""
    split = pack.by_sample[sample][-1]
    if split.kind != SplitKind.TARGET or split.pixels is None:
        raise ValueError(f"sample {sample} of the pack has no target")
    return as_float(pack.images[split.pixels])


def _vit_images(pack: PackedSequence) -> dict[int, Tensor]:
    """Start of a ViT split -> its image (3, H, W)."""
    splits = pack.splits_of(SplitKind.VIT)
    patches = as_float(pack.vit_patches).split([len(s.content) for s in splits])
    side = round((pack.vit_patches.shape[1] // 3) ** 0.5)
    return {
        s.start: rearrange(p, "(r c) (p q ch) -> ch (r p) (c q)", r=s.grid[0], p=side, q=side)  # type: ignore[index]  # images have pixels and grids
        for s, p in zip(splits, patches, strict=True)
    }
