"""What a packed sequence is: the data structure that all packages share.

Samples are packed one after the other into one sequence of L tokens. A sample is a short list of *splits*, in the
order of the base model's `PromptLayout`: Scone's has for each reference image a VAE split, then a ViT split; then the
instruction; then the target (docs/specification.md 3). `data` builds this object; the model, attention and bridge take
tokens and structure from it.

Attention inside a sample follows from the splits alone: a split sees every earlier split that is not a target, and
itself (image splits fully, text causally). A target is seen by itself alone, so one sample may carry several
targets, each at its own noise level, at the price of one context.

Shapes: L tokens, S splits, T text-like tokens (words and image start/end), V ViT tokens, N latent tokens,
P values a ViT patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from scone_pl.model.boxes import Box, tokens_in
from scone_pl.model.indices import indices_of, to_device
from scone_pl.model.layout import SCONE_LAYOUT, PromptLayout

Names = tuple[tuple[int, int], ...]
"""The tokens of each name as (first, stop), counted in the instruction as it is encoded."""


class SplitKind(IntEnum):
    """Content of a split, which decides its expert and its attention."""

    TEXT = 0
    VIT = 1
    VAE = 2
    """Clean latents of a reference image (t = 0)."""
    TARGET = 3
    """Noisy latents of the image to be generated."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that frame splits."""

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
    """Properties of a model that decide how samples become tokens."""

    special: SpecialTokens
    latent_stride: int
    """Pixels a side for one latent token (BAGEL: 16)."""
    latent_positions_per_side: int
    """Side of the latent position table (BAGEL: 64)."""
    vit_patch_size: int
    """Pixels a side for one ViT token (SigLIP: 14)."""
    vit_positions_per_side: int
    """Side by which ViT positions are looked up, the connector's table's (BAGEL: 70)."""
    vit_positions: int | None = None
    """Rows of the ViT's own position table; None = the square of that side."""
    layout: PromptLayout = SCONE_LAYOUT
    """The order of splits."""

    @property
    def vit_largest_side(self) -> int:
        """Maximum patches a side of a square ViT image, for which both tables have rows."""
        side = self.vit_positions_per_side
        # Its last patch is looked up at (n - 1) * side + n - 1.
        return side if self.vit_positions is None else min(side, (self.vit_positions - 1) // (side + 1) + 1)


@dataclass(frozen=True)
class EncodedImage:
    """An image that the autoencoder has encoded already."""

    moments: Tensor
    """(M, h, w), see `Autoencoder.moments`."""
    shape: tuple[int, int, int]
    """(3, H, W) of the image itself."""


@dataclass(frozen=True)
class Split:
    """A run of tokens that enters the sequence as one: an image (start, tokens, end) or a text (begin, ids, end)."""

    kind: SplitKind
    sample: int
    """Index of its sample in the pack."""
    start: int
    """Index of its first token in the packed sequence."""
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
    """A text that is predicted, not given: an answer rather than an instruction."""
    frame: int = 1
    """Tokens at either end of an image split that frame it; see `PromptLayout.frame`."""
    words: tuple[tuple[int, int], ...] | None = None
    """Of a text that holds more than the instruction: the instruction's tokens as (first, stop), counted from `start`.
    None = the whole text, unless it is labelled."""
    targets: tuple[Box, ...] | None = None
    """Of a reference image: boxes of the subjects that the instruction refers to; None = unlabelled."""

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def content(self) -> range:
        """Indices of the tokens between the frame tokens."""
        return range(self.start + self.frame, self.stop - self.frame)

    @property
    def edges(self) -> list[range]:
        """Indices of the frame tokens of an image."""
        return [range(self.start, self.start + self.frame), range(self.stop - self.frame, self.stop)] * bool(self.frame)

    @property
    def labels(self) -> Tensor:
        """(tokens of the image,) float: 1 = in a box of `targets`, 0 = not, nan = unlabelled."""
        if self.targets is None or self.grid is None:
            return torch.full((len(self.content),), torch.nan)
        return tokens_in(self.targets, *self.grid).flatten().float()

    @property
    def instruction(self) -> list[range]:
        """Indices of its tokens that belong to the instruction."""
        if self.kind != SplitKind.TEXT or self.labelled:
            return []
        words = ((0, self.length),) if self.words is None else self.words
        return [range(self.start + first, self.start + stop) for first, stop in words]


@dataclass(frozen=True)
class PackedSequence:
    """Samples packed into one sequence. Tensors hold only what does not follow from the structure (`splits`)."""

    splits: tuple[Split, ...]
    special: SpecialTokens
    text_ids: Tensor
    """(T,) int64: ids of words and frame tokens, in sequence order."""
    vit_patches: Tensor
    """(V, P): flattened patches, channel fastest; as `images` float or uint8."""
    vit_positions: Tensor
    """(V,) int64: rows of the ViT's learned position table."""
    latent_positions: Tensor
    """(N,) int64: rows of the latent position table."""
    timestep_logits: Tensor
    """(VAE and TARGET splits,) float: t before the sigmoid; -inf = clean."""
    images: tuple[Tensor, ...] = ()
    """(3, H, W) float in [-1, 1], or uint8: what the autoencoder encodes, see `Split.pixels`."""
    encoded: bool = False
    """Whether `images` are what the autoencoder made of them, see `EncodedImage`."""
    label_index: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(labels,) int64: tokens whose next token the language head must predict."""
    label_ids: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(labels,) int64: that next token."""
    vit_labels: Tensor | None = None
    """(V,) float: 1 = shows a subject that the instruction refers to, 0 = does not, nan = unlabelled."""
    keys: tuple[str, ...] = ()
    """Keys of the samples, for messages."""
    instructions: tuple[tuple[int, ...] | None, ...] = ()
    """Per sample the instruction as it was encoded; None = none."""
    names: tuple[Names, ...] = ()
    """Per sample the names of subjects in its instruction; empty = not known."""
    layout: PromptLayout = SCONE_LAYOUT
    """How it was built."""

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
        return indices_of(ranges, self.device)

    def per_split(self, values: Sequence[int]) -> Tensor:
        """(L,) int64: `values[s]` for every token of split s."""
        lengths = torch.tensor([split.length for split in self.splits], dtype=torch.int64)
        return to_device(torch.tensor(values, dtype=torch.int64).repeat_interleave(lengths), self.device)

    @cached_property
    def sample_of_token(self) -> Tensor:
        """(L,) int64."""
        return self.per_split([split.sample for split in self.splits])

    @cached_property
    def position_ids(self) -> Tensor:
        """(L,) int64: RoPE positions. Text counts up, all tokens of an image share one (docs/specification.md 3)."""
        texts = [split.kind == SplitKind.TEXT for split in self.splits]
        first = [s.position - s.start * text for s, text in zip(self.splits, texts, strict=True)]
        return self.per_split(first) + self.per_split(texts) * torch.arange(len(self), device=self.device)

    @cached_property
    def text_index(self) -> Tensor:
        """(T,) int64: indices of text tokens and image start/end tokens."""
        ranges = []
        for split in self.splits:
            if split.kind == SplitKind.TEXT:
                ranges.append(range(split.start, split.stop))
            else:
                ranges += split.edges
        return self._ranges(ranges)

    @cached_property
    def instruction_index(self) -> Tensor:
        """(tokens,) int64: indices of instruction tokens (Scone: begin and end token included)."""
        return self._ranges([words for s in self.splits for words in s.instruction])

    @cached_property
    def axis_positions(self) -> Tensor:
        """(L, 3) int64: RoPE positions of three axes: time (`position_ids`), and row and column in an image, else 0."""
        positions = torch.zeros(len(self), 3, dtype=torch.int64, device=self.device)
        positions[:, 0] = self.position_ids
        for split in self.splits:
            if split.grid is not None:
                cells = torch.cartesian_prod(*map(torch.arange, split.grid)).view(-1, 2)
                positions[split.content.start : split.content.stop, 1:] = to_device(cells, self.device)
        return positions

    @cached_property
    def vit_index(self) -> Tensor:
        """(V,) int64: indices of ViT tokens."""
        return self._ranges([s.content for s in self.splits_of(SplitKind.VIT)])

    @cached_property
    def latent_index(self) -> Tensor:
        """(N,) int64: indices of latent tokens, clean or noisy. These are the generation expert's tokens."""
        return self._ranges([s.content for s in self.latent_splits])

    @cached_property
    def understanding_index(self) -> Tensor:
        """(L - N,) int64: indices of the understanding expert's tokens, in sequence order."""
        ranges = []
        for split in self.splits:
            if split.kind in (SplitKind.VAE, SplitKind.TARGET):
                ranges += split.edges
            else:
                ranges.append(range(split.start, split.stop))
        return self._ranges(ranges)

    @cached_property
    def understanding_row(self) -> Tensor:
        """(L,) int64: which row of the understanding expert's tokens a token is (0 for latent tokens)."""
        rows = torch.zeros(len(self), dtype=torch.int64, device=self.device)
        rows[self.understanding_index] = torch.arange(len(self.understanding_index), device=self.device)
        return rows

    @cached_property
    def merge_index(self) -> Tensor:
        """(L,) int64: for every token its row among understanding tokens followed by latent tokens."""
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
    def reference_labels(self) -> Tensor:
        """(L,) float: 1 = reference token in a box of `Split.targets`, 0 = in none, nan = unlabelled, no reference."""
        labels = torch.full((len(self),), torch.nan)
        for split in self.splits_of(SplitKind.VIT, SplitKind.VAE):
            labels[split.content.start : split.content.stop] = split.labels
        return to_device(labels, self.device)

    @cached_property
    def target_index(self) -> Tensor:
        """(targets,) int64: indices of target latent tokens."""
        return self._ranges([s.content for s in self.splits_of(SplitKind.TARGET)])

    @cached_property
    def target_tokens(self) -> Tensor:
        """(L,) bool: target latent tokens, without the frames of their images."""
        is_target = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        is_target[self.target_index] = True
        return is_target

    @cached_property
    def target_weights(self) -> Tensor | None:
        """(targets,) float: what each target token counts for in the loss; None = all the same, 1."""
        if self.layout.image_weight == "tokens":
            return None
        lengths = torch.tensor([len(s.content) for s in self.splits_of(SplitKind.TARGET)], dtype=torch.int64)
        return to_device(lengths.float().rsqrt().repeat_interleave(lengths), self.device)

    @property
    def target_weight(self) -> float:
        """Sum of the target tokens' weights."""
        lengths = [len(s.content) for s in self.splits_of(SplitKind.TARGET)]
        return sum(lengths) if self.layout.image_weight == "tokens" else float(sum(n**0.5 for n in lengths))

    @property
    def mapped_splits(self) -> list[Split]:
        """Splits over whose tokens the bridge's maps of reference images are shown: what a target looks up."""
        return self.splits_of(SplitKind.VIT if self.layout.single_stream else SplitKind.VAE)

    @cached_property
    def target_in_latents(self) -> Tensor:
        """(targets,) int64: rows of the target tokens among the N latent tokens."""
        ranges, stop = [], 0
        for split in self.latent_splits:
            start, stop = stop, stop + len(split.content)
            if split.kind == SplitKind.TARGET:
                ranges.append(range(start, stop))
        return self._ranges(ranges)

    @cached_property
    def _latent_split_of_token(self) -> Tensor:
        lengths = torch.tensor([len(s.content) for s in self.latent_splits], dtype=torch.int64)
        return to_device(torch.arange(len(lengths)).repeat_interleave(lengths), self.device)

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
                return fn(value)  # type: ignore[operator]  # fields of mixed types
            if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
                return tuple(fn(v) for v in value)  # type: ignore[operator]  # fields of mixed types
            return value

        fields = {f.name: apply(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return PackedSequence(**fields)  # type: ignore[arg-type]  # fields of mixed types
