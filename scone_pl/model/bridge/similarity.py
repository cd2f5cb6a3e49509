"""Similarity of reference tokens to the instruction.

The mean of cosines is one product with the mean of the normalised text states, so it is O(L). The other poolings hold
one cosine for each ViT token and instruction token of the same sample.

Shapes: L tokens, U understanding tokens, V ViT tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.errors import UserError
from scone_pl.model.bridge_config import Pooling
from scone_pl.model.indices import to_device
from scone_pl.model.sequence import Names, PackedSequence, SplitKind

_SHARPNESS = 0.1
"""Temperature of the weights of attention pooling."""


class Similarity:
    """Compares references with instructions; the index tensors are built once a pack."""

    def __init__(
        self,
        pack: PackedSequence,
        pooling: Pooling = "mean",
        rotation_seed: int | None = None,
    ) -> None:
        """`pooling`, `rotation_seed`: see `BridgeConfig`."""
        self.pack, self.pooling, self.rotation_seed = pack, pooling, rotation_seed

    @cached_property
    def _kinds(self) -> list[set[SplitKind]]:
        """Per sample the kinds of its splits, texts without a word of the instruction left out."""
        return [{s.kind for s in splits if s.kind != SplitKind.TEXT or s.instruction} for splits in self.pack.by_sample]

    @cached_property
    def _compared(self) -> list[bool]:
        """Per sample whether it has an instruction and ViT tokens; without them it has no similarity.

        Questions name nobody, so by names only samples that are masked have one.
        """
        if self.pooling == "names":
            return self._guided
        return [kinds >= {SplitKind.TEXT, SplitKind.VIT} for kinds in self._kinds]

    @cached_property
    def _guided(self) -> list[bool]:
        """Per sample whether it has an instruction and all tokens of a reference; without them it has no mask."""
        needed = {SplitKind.TEXT, SplitKind.VIT} | ({SplitKind.VAE} if not self.pack.layout.single_stream else set())
        return [kinds >= needed for kinds in self._kinds]

    @cached_property
    def maskable(self) -> Tensor:
        """(L,) bool: reference tokens that a threshold may block, those with a similarity."""
        return self.pack.reference_tokens & self._of_samples(self._guided)

    @cached_property
    def _image_pairs(self) -> list[tuple[Tensor, Tensor, tuple[int, int], tuple[int, int]]]:
        """Indices of the ViT (n, tokens) and VAE (n, tokens) tokens of the same n images, and their common grids.

        Where references enter once, both are the same tokens.
        """
        own = SplitKind.VIT if self.pack.layout.single_stream else SplitKind.VAE
        pairs: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[range, range]]] = {}
        for splits in self.pack.by_sample:
            vae = {s.image: s for s in splits if s.kind == own}
            for split in splits:
                if split.kind == SplitKind.VIT and split.image in vae and self._guided[split.sample]:
                    other = vae[split.image]
                    pairs.setdefault((split.grid, other.grid), []).append((split.content, other.content))  # type: ignore[arg-type]  # images have grids
        device = self.pack.device

        def indices(ranges: list[range]) -> Tensor:
            starts = to_device(torch.tensor([r.start for r in ranges]), device)
            return starts[:, None] + torch.arange(len(ranges[0]), device=device)

        return [(indices([v for v, _ in both]), indices([l for _, l in both]), *grids) for grids, both in pairs.items()]

    def __call__(self, understanding: Tensor) -> Tensor:
        """`understanding` (U, D), the expert's states after the source layer -> (L,) float32, differentiable.

        1 where none is defined.
        """
        pack, row = self.pack, self.pack.understanding_row
        similarity = torch.ones(len(pack), device=pack.device)
        vit_index, text_index = pack.vit_index, pack.instruction_index
        if not len(vit_index) or not len(text_index) or not any(self._compared):
            return similarity
        states = F.normalize(understanding.float(), dim=-1, eps=1e-8)
        words = states if self.rotation_seed is None else rotated(states, self.rotation_seed)
        if self.pooling == "mean":
            sample, text_mean = pack.sample_of_token, self.instruction_mean(words)
            of_vit = (states[row[vit_index]] * text_mean[sample[vit_index]]).sum(-1)  # (V,)
            compared = self._of_samples(self._compared)[vit_index]
            similarity = similarity.index_put((vit_index,), torch.where(compared, of_vit, 1.0))
        else:
            index = torch.cat([vit for vit, _ in self._by_sample])
            names = self._names if self.pooling == "names" else [()] * len(self._by_sample)
            pooled = [
                self._pooled(states[row[vit]] @ words[row[text]].T, of_sample)
                for (vit, text), of_sample in zip(self._by_sample, names, strict=True)
            ]
            similarity = similarity.index_put((index,), torch.cat(pooled))
        for vit, vae, vit_grid, vae_grid in self._image_pairs if not pack.layout.single_stream else ():
            grid = similarity[vit].view(-1, 1, *vit_grid)
            resized = F.interpolate(grid, size=vae_grid, mode="bilinear", align_corners=False)
            similarity = similarity.index_put((vae,), resized.flatten(1))
        return similarity

    @cached_property
    def of_boxes(self) -> Tensor:
        """(L,) float32: 1 and 0 by the boxes of the target subjects, see `BridgeConfig.oracle`; 1 where no mask may be.

        Raises:
            UserError: a reference image that could be masked has no boxes.
        """
        labels = self.pack.reference_labels
        if (unknown := (labels.isnan() & self.maskable).nonzero()).numel():
            key = (*self.pack.keys, "")[int(self.pack.sample_of_token[unknown[0, 0]])]
            raise UserError(
                f"{key or 'a prompt'}: bridge.oracle needs to know the target subjects in every reference image; give "
                "samples with `candidates`, or another bridge"
            )
        return torch.where(self.maskable, labels, 1.0)

    @cached_property
    def _by_sample(self) -> list[tuple[Tensor, Tensor]]:
        """For each compared sample the indices of its ViT tokens and of its instruction's."""
        pairs = []
        for splits, compared in zip(self.pack.by_sample, self._compared, strict=True):
            if compared:
                vit = [i for s in splits if s.kind == SplitKind.VIT for i in s.content]
                text = [i for s in splits for words in s.instruction for i in words]
                first, second = (to_device(torch.tensor(index), self.pack.device) for index in (vit, text))
                pairs.append((first, second))
        return pairs

    @cached_property
    def _names(self) -> list[Names]:
        """For each compared sample its names' words, counted in its instruction's tokens.

        Raises:
            UserError: a sample has none, or the base model's instruction is not one run of tokens.
        """
        pack = self.pack
        if pack.layout.single_stream:
            raise UserError("bridge.pooling names is of models that see each reference twice; use max or attention")
        found = []
        for sample, compared in enumerate(self._compared):
            if compared and not pack.names[sample]:
                raise UserError(
                    f"{pack.keys[sample] or 'a prompt'}: bridge.pooling names needs `names` in the sample's metadata, "
                    "the phrases of its instruction that name subjects, in order; write the data set again, or use max"
                )
            if compared:
                found.append(tuple((1 + first, 1 + stop) for first, stop in pack.names[sample]))  # the begin token
        return found

    def _pooled(self, cosines: Tensor, names: Names) -> Tensor:
        """(tokens, words) -> (tokens,)."""
        if self.pooling == "names":
            return torch.stack([cosines[:, first:stop].mean(dim=1) for first, stop in names]).amax(dim=0)
        if self.pooling == "max":
            return cosines.amax(dim=1)
        return (cosines * (cosines / _SHARPNESS).softmax(dim=1)).sum(dim=1)

    def instruction_mean(self, states: Tensor) -> Tensor:
        """(U, D) normalised states -> (samples, D): their mean over each instruction, 0 where there is none."""
        pack, index = self.pack, self.pack.instruction_index
        sample = pack.sample_of_token[index]
        mean = states.new_zeros(pack.num_samples, states.shape[1])
        mean = mean.index_add(0, sample, states[pack.understanding_row[index]])
        # Not by `bincount`, for which the host waits for the device.
        counts = states.new_zeros(pack.num_samples).index_add(0, sample, states.new_ones(len(index)))
        return mean / counts.clamp(min=1)[:, None]

    def of_images(self, similarity: Tensor, rule: Callable[[Tensor], Tensor], otherwise: float) -> Tensor:
        """(L,) of (L,): a value for all tokens of a reference image, `otherwise` elsewhere.

        `rule` takes (images, tokens), the similarities of their ViT tokens, and returns (images,).
        """
        result = similarity.new_full((len(self.pack),), otherwise)
        for vit, vae, *_ in self._image_pairs:
            of_image = rule(similarity[vit])[:, None]
            result[vit], result[vae] = of_image.expand(vit.shape), of_image.expand(vae.shape)
        return result

    def _of_samples(self, values: list[bool]) -> Tensor:
        """(L,) bool: for every token the value of its sample."""
        return self.pack.per_split([values[split.sample] for split in self.pack.splits]).bool()


def rotated(states: Tensor, seed: int) -> Tensor:
    """(n, D) -> (n, D): components in a random order with random signs, an orthogonal map that costs no product."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(states.shape[1], generator=generator)
    signs = torch.randint(2, order.shape, generator=generator) * 2.0 - 1
    return states[:, to_device(order, states.device)] * to_device(signs, states.device)
