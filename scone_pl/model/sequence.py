"""The vocabulary that all rooms share: what a packed sequence is.

Samples are packed one after the other into one sequence of L tokens. A sample is a short list of *splits*: for each
reference image a VAE split, then a ViT split; then the instruction; then the target (SPEC 3). Every other room asks
this object: data builds it, the model reads it, attention and bridge take its structure from it.

Attention inside a sample follows from the splits alone: a split sees every earlier split that is not a target, and
itself (image splits fully, text causally). A target is seen by itself alone, so one sample may carry several
targets, each at its own noise level, at the price of one context.

Shapes: L tokens, S splits, T text-like tokens (words and image start/end), V ViT tokens, N latent tokens,
P values a ViT patch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor


class SplitKind(IntEnum):
    """What a split holds, which decides its expert and its attention."""

    TEXT = 0
    VIT = 1
    VAE = 2
    """Clean latents of a reference image (t = 0)."""
    TARGET = 3
    """Noisy latents of the image to be generated."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that frame the splits."""

    begin_text: int
    """`<|im_start|>`"""
    end_text: int
    """`<|im_end|>`"""
    start_image: int
    """`<|vision_start|>`"""
    end_image: int
    """`<|vision_end|>`"""


@dataclass(frozen=True, kw_only=True)
class SequenceFormat:
    """The few facts of a model that decide how samples become tokens."""

    special: SpecialTokens
    latent_stride: int
    """Pixels a side for one latent token (BAGEL: 16)."""
    latent_positions_per_side: int
    """Side of the latent position table (BAGEL: 64)."""
    vit_patch_size: int
    """Pixels a side for one ViT token (SigLIP: 14)."""
    vit_positions_per_side: int
    """Side of the ViT position table (BAGEL: 70)."""


@dataclass(frozen=True)
class Split:
    """A run of tokens that enters the sequence as one: an image (start, tokens, end) or a text (begin, ids, end)."""

    kind: SplitKind
    sample: int
    """Index of its sample in the pack."""
    start: int
    """Place of its first token in the packed sequence."""
    length: int
    """Tokens, frame included."""
    position: int
    """RoPE position: of all tokens of an image split, of the first token of a text split."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of an image split's tokens."""
    image: int | None = None
    """Which reference image of the sample; a VAE and a ViT split with the same number show the same image."""
    pixels: int | None = None
    """Index into `PackedSequence.images` (VAE and TARGET splits)."""
    labelled: bool = False
    """A text that is predicted, not given: an answer, no instruction."""

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def content(self) -> range:
        """Places of the tokens between the frame tokens."""
        return range(self.start + 1, self.stop - 1)


@dataclass(frozen=True)
class PackedSequence:
    """Samples packed into one sequence. Tensors only hold what the structure (`splits`) cannot tell."""

    splits: tuple[Split, ...]
    special: SpecialTokens
    text_ids: Tensor
    """(T,) int64: ids of words and frame tokens, in sequence order."""
    vit_patches: Tensor
    """(V, P) float: flattened patches, channel fastest."""
    vit_positions: Tensor
    """(V,) int64: rows of the ViT's learned position table."""
    latent_positions: Tensor
    """(N,) int64: rows of the latent position table."""
    timestep_logits: Tensor
    """(VAE and TARGET splits,) float: t before the sigmoid; -inf = clean."""
    images: tuple[Tensor, ...] = ()
    """(3, H, W) float in [-1, 1]: what the autoencoder encodes, see `Split.pixels`."""
    label_index: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(labels,) int64: places whose next token the language head must predict."""
    label_ids: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(labels,) int64: that next token."""
    vit_meant: Tensor | None = None
    """(V,) float: 1 = shows a subject that the instruction means, 0 = it does not, nan = unknown."""
    keys: tuple[str, ...] = ()
    """Keys of the samples, for messages."""

    # ------------------------------------------------------------------ structure
    def __len__(self) -> int:
        return self.splits[-1].stop if self.splits else 0

    @property
    def device(self) -> torch.device:
        return self.text_ids.device

    @property
    def num_samples(self) -> int:
        return self.splits[-1].sample + 1 if self.splits else 0

    def splits_of(self, *kinds: SplitKind) -> list[Split]:
        """Splits of these kinds, in sequence order."""
        return [split for split in self.splits if split.kind in kinds]

    @cached_property
    def by_sample(self) -> tuple[tuple[Split, ...], ...]:
        """The splits of each sample."""
        groups: list[list[Split]] = [[] for _ in range(self.num_samples)]
        for split in self.splits:
            groups[split.sample].append(split)
        return tuple(tuple(group) for group in groups)

    @cached_property
    def latent_splits(self) -> tuple[Split, ...]:
        """VAE and TARGET splits: the rows of `timestep_logits`."""
        return tuple(self.splits_of(SplitKind.VAE, SplitKind.TARGET))

    # ------------------------------------------------------------------ index tensors, each built once
    def _ranges(self, ranges: list[range]) -> Tensor:
        parts = [torch.arange(r.start, r.stop) for r in ranges]
        return (torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)).to(self.device)

    def per_split(self, values: list[int]) -> Tensor:
        """(L,) int64: `values[s]` for every token of split s."""
        lengths = torch.tensor([split.length for split in self.splits], dtype=torch.int64)
        return torch.tensor(values, dtype=torch.int64).repeat_interleave(lengths).to(self.device)

    @cached_property
    def sample_of_token(self) -> Tensor:
        """(L,) int64."""
        return self.per_split([split.sample for split in self.splits])

    @cached_property
    def position_ids(self) -> Tensor:
        """(L,) int64: RoPE positions. Text counts up, all tokens of an image share one (SPEC 3)."""
        positions = self.per_split([split.position for split in self.splits])
        for split in self.splits_of(SplitKind.TEXT):
            positions[split.start : split.stop] += torch.arange(split.length, device=self.device)
        return positions

    @cached_property
    def text_index(self) -> Tensor:
        """(T,) int64: places of text tokens and image start/end tokens."""
        ranges = []
        for split in self.splits:
            if split.kind == SplitKind.TEXT:
                ranges.append(range(split.start, split.stop))
            else:
                ranges += [range(split.start, split.start + 1), range(split.stop - 1, split.stop)]
        return self._ranges(ranges)

    @cached_property
    def instruction_index(self) -> Tensor:
        """(tokens,) int64: places of instruction tokens, begin and end token included."""
        return self._ranges([range(s.start, s.stop) for s in self.splits_of(SplitKind.TEXT) if not s.labelled])

    @cached_property
    def vit_index(self) -> Tensor:
        """(V,) int64: places of ViT tokens."""
        return self._ranges([s.content for s in self.splits_of(SplitKind.VIT)])

    @cached_property
    def latent_index(self) -> Tensor:
        """(N,) int64: places of latent tokens, clean or noisy. These are the generation expert's tokens."""
        return self._ranges([s.content for s in self.latent_splits])

    @cached_property
    def understanding_index(self) -> Tensor:
        """(L - N,) int64: places of the understanding expert's tokens, in sequence order."""
        is_understanding = torch.ones(len(self), dtype=torch.bool, device=self.device)
        is_understanding[self.latent_index] = False
        return is_understanding.nonzero().flatten()

    @cached_property
    def understanding_row(self) -> Tensor:
        """(L,) int64: which row of the understanding expert's tokens a token is (0 for latent tokens)."""
        rows = torch.zeros(len(self), dtype=torch.int64, device=self.device)
        rows[self.understanding_index] = torch.arange(len(self.understanding_index), device=self.device)
        return rows

    @cached_property
    def merge_index(self) -> Tensor:
        """(L,) int64: for every place its row among understanding tokens followed by latent tokens."""
        rows = self.understanding_row.clone()
        rows[self.latent_index] = len(self.understanding_index) + torch.arange(
            len(self.latent_index), device=self.device
        )
        return rows

    @cached_property
    def reference_tokens(self) -> Tensor:
        """(L,) bool: ViT tokens and clean latent tokens, without their frames."""
        is_reference = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        is_reference[self._ranges([s.content for s in self.splits_of(SplitKind.VIT, SplitKind.VAE)])] = True
        return is_reference

    @cached_property
    def target_index(self) -> Tensor:
        """(targets,) int64: places of target latent tokens."""
        return self._ranges([s.content for s in self.splits_of(SplitKind.TARGET)])

    @cached_property
    def target_in_latents(self) -> Tensor:
        """(targets,) int64: rows of the target tokens among the N latent tokens."""
        is_target = self.expand_latent_splits(
            torch.tensor([s.kind == SplitKind.TARGET for s in self.latent_splits], device=self.device)
        )
        return is_target.nonzero().flatten()

    @cached_property
    def _latent_split_of_token(self) -> Tensor:
        lengths = torch.tensor([len(s.content) for s in self.latent_splits], dtype=torch.int64)
        return torch.arange(len(lengths)).repeat_interleave(lengths).to(self.device)

    def expand_latent_splits(self, values: Tensor) -> Tensor:
        """(N, ...): the value of its split for every latent token; `values` is (latent splits, ...)."""
        return values[self._latent_split_of_token]

    @cached_property
    def vit_grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every ViT image."""
        return tuple(s.grid for s in self.splits_of(SplitKind.VIT) if s.grid)

    # ------------------------------------------------------------------ moving
    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedSequence:
        """A copy on `device` (Lightning moves batches by this method)."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedSequence:
        """A copy in pinned host memory, for the data loader."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, fn: object) -> PackedSequence:
        def apply(value: object) -> object:
            if isinstance(value, Tensor):
                return fn(value)  # type: ignore[operator]
            if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
                return tuple(fn(v) for v in value)  # type: ignore[operator]
            return value

        fields = {f.name: apply(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return PackedSequence(**fields)  # type: ignore[arg-type]


class SequenceBuilder:
    """Builds a `PackedSequence` split by split.

    Call `begin_sample`, then the splits in the order in which they are to be seen (SPEC 3: for each reference
    `add_vae` and `add_vit`; `add_text`; `add_target`), then the next sample; `build` at the end.
    """

    def __init__(self, form: SequenceFormat) -> None:
        """`form`: what the model expects, see `SequenceFormat`."""
        self.form = form
        self._splits: list[Split] = []
        self._text_ids: list[int] = []
        self._patches: list[Tensor] = []
        self._vit_positions: list[Tensor] = []
        self._meant: list[Tensor] = []
        self._latent_positions: list[Tensor] = []
        self._timestep_logits: list[float] = []
        self._images: list[Tensor] = []
        self._label_index: list[int] = []
        self._label_ids: list[int] = []
        self._keys: list[str] = []
        self._position = 0
        self._sample = -1
        self._length = 0

    def begin_sample(self, key: str = "", position: int = 0) -> None:
        """Starts a new sample; positions count from `position`, which is not 0 where a cache holds earlier splits."""
        self._sample += 1
        self._position = position
        self._keys.append(key)

    def _append(self, kind: SplitKind, length: int, **fields: object) -> Split:
        if self._sample < 0:
            raise ValueError("call begin_sample before adding splits")
        last = self._splits[-1] if self._splits else None
        if last and last.sample == self._sample and last.kind == SplitKind.TARGET and kind != SplitKind.TARGET:
            raise ValueError("targets come last in a sample: nothing may attend to them")
        split = Split(kind, self._sample, self._length, length, self._position, **fields)  # type: ignore[arg-type]
        self._splits.append(split)
        self._length += length
        return split

    def add_text(self, ids: list[int], *, loss: bool = False) -> None:
        """Adds `begin ids end`; with `loss` the language head must predict every id and the end token (SPEC 4)."""
        framed = [self.form.special.begin_text, *ids, self.form.special.end_text]
        split = self._append(SplitKind.TEXT, len(framed), labelled=loss)
        self._text_ids += framed
        if loss:
            self._label_index += range(split.start, split.stop - 1)
            self._label_ids += framed[1:]
        self._position += len(framed)

    def add_vit(self, image: Tensor, *, reference: int, meant: Tensor | None = None) -> None:
        """Adds the ViT split of reference image number `reference`.

        Args:
            image: (3, H, W) in [-1, 1], sides multiples of the patch size.
            reference: its number in the sample; ties it to the VAE split of the same number.
            meant: (rows, columns) float, see `PackedSequence.vit_meant`.

        Raises:
            ValueError: sides that are no multiples of the patch size, or a grid over the position table.
        """
        grid = _grid(image, self.form.vit_patch_size, self.form.vit_positions_per_side, "ViT")
        self._append(SplitKind.VIT, grid[0] * grid[1] + 2, grid=grid, image=reference)
        self._frame_image()
        self._patches.append(patchify_image(image, self.form.vit_patch_size))
        self._vit_positions.append(grid_positions(grid, self.form.vit_positions_per_side))
        self._meant.append(torch.full((grid[0] * grid[1],), math.nan) if meant is None else meant.flatten().float())
        self._position += 1

    def add_vae(self, image: Tensor, *, reference: int) -> None:
        """Adds the clean-latent split of reference image number `reference`; `image` is (3, H, W) in [-1, 1]."""
        self._images.append(image)
        self._add_latents(SplitKind.VAE, image, -math.inf, len(self._images) - 1, reference)
        self._position += 1

    def add_targets(self, image: Tensor, timestep_logits: list[float]) -> None:
        """Adds one noisy target split of `image` (3, H, W) per entry of `timestep_logits` (t before the sigmoid)."""
        self._images.append(image)
        for logit in timestep_logits:
            self._add_latents(SplitKind.TARGET, image, logit, len(self._images) - 1, None)
        self._position += 1

    def skip_image(self) -> None:
        """A dropped reference image: no tokens, but it still uses up its position (SPEC 3)."""
        self._position += 1

    def _add_latents(self, kind: SplitKind, image: Tensor, logit: float, pixels: int, reference: int | None) -> None:
        grid = _grid(image, self.form.latent_stride, self.form.latent_positions_per_side, "VAE")
        self._append(kind, grid[0] * grid[1] + 2, grid=grid, image=reference, pixels=pixels)
        self._frame_image()
        self._latent_positions.append(grid_positions(grid, self.form.latent_positions_per_side))
        self._timestep_logits.append(logit)

    def _frame_image(self) -> None:
        self._text_ids += [self.form.special.start_image, self.form.special.end_image]

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
        return PackedSequence(
            splits=tuple(self._splits),
            special=self.form.special,
            text_ids=torch.tensor(self._text_ids, dtype=torch.int64),
            vit_patches=cat(self._patches, torch.zeros(0, 3 * self.form.vit_patch_size**2)),
            vit_positions=cat(self._vit_positions, none),
            latent_positions=cat(self._latent_positions, none),
            timestep_logits=torch.tensor(self._timestep_logits, dtype=torch.float32),
            images=tuple(self._images),
            label_index=torch.tensor(self._label_index, dtype=torch.int64),
            label_ids=torch.tensor(self._label_ids, dtype=torch.int64),
            vit_meant=cat(self._meant, torch.zeros(0)),
            keys=tuple(self._keys),
        )


def patchify_image(image: Tensor, patch_size: int) -> Tensor:
    """(3, H, W) -> (rows * columns, patch_size * patch_size * 3), rows first, channel fastest."""
    channels, height, width = image.shape
    rows, columns = height // patch_size, width // patch_size
    patches = image.view(channels, rows, patch_size, columns, patch_size)
    return patches.permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)


def grid_positions(grid: tuple[int, int], positions_per_side: int) -> Tensor:
    """(rows * columns,) int64: rows of a square position table, `row * positions_per_side + column`."""
    rows, columns = grid
    return (torch.arange(rows)[:, None] * positions_per_side + torch.arange(columns)).flatten()


def _grid(image: Tensor, stride: int, positions_per_side: int, what: str) -> tuple[int, int]:
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
