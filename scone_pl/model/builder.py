"""Building a packed sequence, split by split.

Shapes: V ViT tokens, P values a ViT patch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scone_pl.model.boxes import Box
from scone_pl.model.sequence import EncodedImage, Names, PackedSequence, SequenceFormat, Split, SplitKind


class SequenceBuilder:
    """Builds a `PackedSequence` split by split.

    Call `begin_sample`, then the splits in the order in which they are to be seen (specification 3: for each reference
    `add_vae` and `add_vit`; `add_text`; `add_targets`), then the next sample; `build` at the end.
    """

    def __init__(self, sequence_format: SequenceFormat) -> None:
        """`sequence_format`: what the model expects, see `SequenceFormat`."""
        self.sequence_format = sequence_format
        self._splits: list[Split] = []
        self._text_ids: list[int] = []
        self._patches: list[Tensor] = []
        self._vit_positions: list[Tensor] = []
        self._latent_positions: list[Tensor] = []
        self._timestep_logits: list[float] = []
        self._images: list[Tensor | EncodedImage] = []
        self._label_index: list[int] = []
        self._label_ids: list[int] = []
        self._keys: list[str] = []
        self._instructions: list[tuple[int, ...] | None] = []
        self._names: list[Names] = []
        self._position = 0
        self._sample = -1
        self._length = 0

    def begin_sample(self, key: str = "", position: int = 0, names: Names = ()) -> None:
        """Starts a new sample.

        Args:
            key: see `PackedSequence.keys`.
            position: from which positions count; not 0 where a cache holds earlier splits.
            names: see `PackedSequence.names`.
        """
        self._sample += 1
        self._position = position
        self._keys.append(key)
        self._instructions.append(None)
        self._names.append(names)

    def _append(self, kind: SplitKind, length: int, *, closing: bool = False, **fields: Any) -> Split:
        if self._sample < 0:
            raise ValueError("call begin_sample before adding splits")
        last = self._splits[-1] if self._splits else None
        behind_target = last and last.sample == self._sample and last.kind == SplitKind.TARGET
        if behind_target and kind != SplitKind.TARGET and not closing:
            raise ValueError("targets come last in a sample: nothing may attend to them")
        split = Split(kind, self._sample, self._length, length, self._position, **fields)
        self._splits.append(split)
        self._length += length
        return split

    def add_text(self, ids: list[int], *, loss: bool = False) -> None:
        """Adds `begin ids end`; with `loss` the language head must predict every id and the end token."""
        framed = [self.sequence_format.special.begin_text, *ids, self.sequence_format.special.end_text]
        self.add_words(framed, None, first_label=1 if loss else None)
        if not loss:
            self.note_instruction(ids)

    def note_instruction(self, ids: list[int]) -> None:
        """Records the current sample's instruction as it was encoded, see `PackedSequence.instructions`."""
        self._instructions[-1] = tuple(ids)

    def add_words(
        self, ids: list[int], words: tuple[tuple[int, int], ...] | None, *, first_label: int | None = None
    ) -> None:
        """Adds a text as it is, without begin and end.

        Args:
            ids: its tokens.
            words: see `Split.words`.
            first_label: the language head must predict every id from this one on; None = none.
        """
        split = self._append(SplitKind.TEXT, len(ids), labelled=first_label is not None, words=words)
        self._text_ids += ids
        if first_label is not None:
            self._label_index += range(split.start + first_label - 1, split.stop - 1)
            self._label_ids += ids[first_label:]
        self._position += len(ids)

    def add_closing(self, ids: list[int]) -> None:
        """Adds a text after the last target, which sees no target; for comparisons of masks with `dense_mask` only."""
        self._append(SplitKind.TEXT, len(ids), closing=True, words=())
        self._text_ids += ids
        self._position += len(ids)

    def add_vit(self, image: Tensor, *, reference: int, targets: tuple[Box, ...] | None = None) -> None:
        """Adds the ViT split of reference image number `reference`.

        Args:
            image: (3, H, W) in [-1, 1], sides multiples of the patch size.
            reference: its number in the sample; ties it to the VAE split of the same number.
            targets: see `Split.targets`.

        Raises:
            ValueError: sides that are no multiples of the patch size, or a grid over the position table.
        """
        grid = _grid(image, self.sequence_format.vit_patch_size, self.sequence_format.vit_positions_per_side, "ViT")
        rows = self.sequence_format.vit_positions
        if rows is not None and (grid[0] - 1) * self.sequence_format.vit_positions_per_side + grid[1] > rows:
            largest = self.sequence_format.vit_largest_side * self.sequence_format.vit_patch_size
            raise ValueError(
                f"a ViT image of {grid[0]} x {grid[1]} tokens has positions beyond the {rows} rows of the ViT's table: "
                f"use images of at most {largest} pixels a side"
            )
        self._add_image(SplitKind.VIT, grid, image=reference, targets=targets)
        self._patches.append(patchify_image(image, self.sequence_format.vit_patch_size))
        self._vit_positions.append(grid_positions(grid, self.sequence_format.vit_positions_per_side))
        self._position += 1

    def add_vae(self, image: Tensor | EncodedImage, *, reference: int, targets: tuple[Box, ...] | None = None) -> None:
        """Adds the clean-latent split of reference image number `reference`.

        Args:
            image: (3, H, W) in [-1, 1] or uint8, or encoded already; a sequence has images of one kind.
            reference: its number in the sample.
            targets: see `Split.targets`.
        """
        self._images.append(image)
        self._add_latents(SplitKind.VAE, image, -math.inf, image=reference, targets=targets)
        self._position += 1

    def add_targets(self, image: Tensor | EncodedImage, timestep_logits: list[float]) -> None:
        """Adds one noisy target split of `image`, see `add_vae`, per entry of `timestep_logits` (t before sigmoid)."""
        self._images.append(image)
        for logit in timestep_logits:
            self._add_latents(SplitKind.TARGET, image, logit)
        self._position += 1

    def skip_image(self) -> None:
        """A dropped reference image: no tokens, but it still takes its position (docs/specification.md 3)."""
        self._position += 1

    def _add_latents(self, kind: SplitKind, pixels: Tensor | EncodedImage, logit: float, **fields: Any) -> None:
        grid = _grid(pixels, self.sequence_format.latent_stride, self.sequence_format.latent_positions_per_side, "VAE")
        self._add_image(kind, grid, pixels=len(self._images) - 1, **fields)
        self._latent_positions.append(grid_positions(grid, self.sequence_format.latent_positions_per_side))
        self._timestep_logits.append(logit)

    def _add_image(self, kind: SplitKind, grid: tuple[int, int], **fields: Any) -> None:
        frame, special = self.sequence_format.layout.frame, self.sequence_format.special
        self._append(kind, grid[0] * grid[1] + 2 * frame, grid=grid, frame=frame, **fields)
        self._text_ids += [special.start_image, special.end_image] * frame

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self._length

    @property
    def position(self) -> int:
        """RoPE position that the current sample's next split would take."""
        return self._position

    def build(self) -> PackedSequence:
        """The finished sequence, on the CPU."""

        def cat(parts: list[Tensor], empty: Tensor) -> Tensor:
            return torch.cat(parts) if parts else empty

        none = torch.zeros(0, dtype=torch.int64)
        encoded = {isinstance(image, EncodedImage) for image in self._images}
        if len(encoded) > 1:
            raise ValueError("some images are encoded already and others are not")
        return PackedSequence(
            splits=tuple(self._splits),
            special=self.sequence_format.special,
            text_ids=torch.tensor(self._text_ids, dtype=torch.int64),
            vit_patches=cat(self._patches, torch.zeros(0, 3 * self.sequence_format.vit_patch_size**2)),
            vit_positions=cat(self._vit_positions, none),
            latent_positions=cat(self._latent_positions, none),
            timestep_logits=torch.tensor(self._timestep_logits, dtype=torch.float32),
            images=tuple(i.moments if isinstance(i, EncodedImage) else i for i in self._images),
            encoded=True in encoded,
            label_index=torch.tensor(self._label_index, dtype=torch.int64),
            label_ids=torch.tensor(self._label_ids, dtype=torch.int64),
            vit_labels=cat([s.labels for s in self._splits if s.kind == SplitKind.VIT], torch.zeros(0)),
            keys=tuple(self._keys),
            instructions=tuple(self._instructions),
            names=tuple(self._names),
            layout=self.sequence_format.layout,
        )


def patchify_image(image: Tensor, patch_size: int) -> Tensor:
    """(3, H, W) -> (rows * columns, patch_size * patch_size * 3), rows first, channel fastest."""
    channels, height, width = image.shape
    rows, columns = height // patch_size, width // patch_size
    patches = image.view(channels, rows, patch_size, columns, patch_size)
    return patches.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)


@lru_cache(maxsize=64)  # shards have few sizes
def grid_positions(grid: tuple[int, int], positions_per_side: int) -> Tensor:
    """(rows * columns,) int64, not to be written to: rows of a square table, `row * positions_per_side + column`."""
    rows, columns = grid
    return (torch.arange(rows)[:, None] * positions_per_side + torch.arange(columns)).flatten()


def _grid(image: Tensor | EncodedImage, stride: int, positions_per_side: int, what: str) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if height % stride or width % stride:
        raise ValueError(f"a {what} image of {height} x {width} pixels must have sides divisible by {stride}")
    grid = (height // stride, width // stride)
    if max(grid) > positions_per_side:
        raise ValueError(
            f"a {what} image of {height} x {width} pixels makes a grid of {grid[0]} x {grid[1]} tokens, but the "
            f"checkpoint's position table has {positions_per_side} a side: use images of at most "
            f"{positions_per_side * stride} pixels a side"
        )
    return grid
