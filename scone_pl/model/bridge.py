"""The understanding bridge (paper Eq. 1-3, docs/specification.md 5) and nothing else.

After decoder layer e, per sample and reference image: s_i = mean over the instruction tokens j of
cosine(h_vit_i, h_text_j) for each ViT token i; the grid of s is resized to the grid of the image's VAE tokens. A
reference token with s below the threshold is blocked for target queries in the masked layers.

Beyond the paper (`BridgeConfig`): tau as a quantile of s in each image, and in place of -inf a soft bias
log sigmoid((s_i - tau) / T), through which the loss of the picture trains s; blocked tokens may leave the network
altogether (`dropping.py`).

The mean of cosines is one product with the mean of the normalised text states, so everything here is O(L).

Shapes: L tokens, U understanding tokens, V ViT tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.model.attention import AttentionPlan
from scone_pl.model.config import BridgeConfig
from scone_pl.model.dropping import Remaining
from scone_pl.model.sequence import PackedSequence, SplitKind, to_device


@dataclass(frozen=True)
class BridgeState:
    """What the bridge found in one pack."""

    similarity: Tensor
    """(L,) float32; 1 where none is defined."""
    blocked: Tensor
    """(L,) bool: below the threshold; a hard mask hides these from target queries in the masked layers."""
    bias: Tensor | None = None
    """(L,) float32, soft mode: added to target queries' logits in the masked layers; 0 where nothing is hidden."""
    remaining: Remaining | None = None
    """With `drop_blocked`: what the layers behind the source layer compute."""

    def apply(self, plan: AttentionPlan) -> AttentionPlan:
        """`plan` for the masked layers."""
        return plan.hiding(self.blocked) if self.bias is None else plan.biased(self.bias)


class Bridge:
    """Compares references with instructions; the index tensors are built once a pack."""

    def __init__(self, config: BridgeConfig, pack: PackedSequence, *, differentiable: bool = False) -> None:
        """With `differentiable`, or in soft mode, the similarity keeps its graph; a hard mask, a step, passes none."""
        self.config = config
        self.pack = pack
        self.differentiable = differentiable or config.mode == "soft"

    @cached_property
    def _guided(self) -> list[bool]:
        """Per sample whether it has an instruction, ViT and clean latent tokens; without them it has no mask."""
        return [kinds >= {SplitKind.TEXT, SplitKind.VIT, SplitKind.VAE} for kinds in self._kinds]

    @cached_property
    def _compared(self) -> list[bool]:
        """Per sample whether it has an instruction and ViT tokens; without them it has no similarity."""
        return [kinds >= {SplitKind.TEXT, SplitKind.VIT} for kinds in self._kinds]

    @cached_property
    def _kinds(self) -> list[set[SplitKind]]:
        """Per sample what it holds, answers left out."""
        return [{s.kind for s in splits if not s.labelled} for splits in self.pack.by_sample]

    @cached_property
    def _image_pairs(self) -> list[tuple[Tensor, Tensor, tuple[int, int], tuple[int, int]]]:
        """Places of the ViT (n, tokens) and VAE (n, tokens) tokens of the same n images, and their common grids."""
        pairs: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[range, range]]] = {}
        for splits in self.pack.by_sample:
            vae = {s.image: s for s in splits if s.kind == SplitKind.VAE}
            for split in splits:
                if split.kind == SplitKind.VIT and split.image in vae and self._guided[split.sample]:
                    other = vae[split.image]
                    pairs.setdefault((split.grid, other.grid), []).append((split.content, other.content))  # type: ignore[arg-type]
        device = self.pack.device

        def places(ranges: list[range]) -> Tensor:
            starts = to_device(torch.tensor([r.start for r in ranges]), device)
            return starts[:, None] + torch.arange(len(ranges[0]), device=device)

        return [(places([v for v, _ in both]), places([l for _, l in both]), *grids) for grids, both in pairs.items()]

    def similarity(self, understanding: Tensor) -> Tensor:
        """`understanding` (U, D), the expert's states after the source layer -> (L,) float32, differentiable."""
        pack, row = self.pack, self.pack.understanding_row
        similarity = torch.ones(len(pack), device=pack.device)
        vit_places, text_places = pack.vit_index, pack.instruction_index
        if not len(vit_places) or not len(text_places) or not any(self._compared):
            return similarity
        states = F.normalize(understanding.float(), dim=-1, eps=1e-8)
        sample, text_mean = pack.sample_of_token, self.instruction_mean(states)
        of_vit = (states[row[vit_places]] * text_mean[sample[vit_places]]).sum(-1)  # (V,)
        compared = self._of_samples(self._compared)[vit_places]
        similarity = similarity.index_put((vit_places,), torch.where(compared, of_vit, 1.0))
        for vit, vae, vit_grid, vae_grid in self._image_pairs:
            grid = similarity[vit].view(-1, 1, *vit_grid)
            resized = F.interpolate(grid, size=vae_grid, mode="bilinear", align_corners=False)
            similarity = similarity.index_put((vae,), resized.flatten(1))
        return similarity

    def instruction_mean(self, states: Tensor) -> Tensor:
        """(U, D) normalised states -> (samples, D): their mean over each instruction, 0 where there is none."""
        pack, places = self.pack, self.pack.instruction_index
        sample = pack.sample_of_token[places]
        mean = states.new_zeros(pack.num_samples, states.shape[1])
        mean = mean.index_add(0, sample, states[pack.understanding_row[places]])
        # Not by `bincount`, for which the host waits for the device.
        counts = states.new_zeros(pack.num_samples).index_add(0, sample, states.new_ones(len(places)))
        return mean / counts.clamp(min=1)[:, None]

    def _of_samples(self, values: list[bool]) -> Tensor:
        """(L,) bool: for every token the value of its sample."""
        return self.pack.per_split([values[split.sample] for split in self.pack.splits]).bool()

    def __call__(self, understanding: Tensor) -> BridgeState:
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            similarity = self.similarity(understanding)
        # Where no similarity is defined nothing is blocked, not even by a threshold over 1.
        defined = self.pack.reference_tokens & self._of_samples(self._guided)
        threshold = self.threshold(similarity.detach())
        bias = None
        if self.config.mode == "soft":
            bias = F.logsigmoid((similarity - threshold) / self.config.temperature).masked_fill(~defined, 0.0)
        compared = similarity.detach()
        if self.config.threshold_dtype == "bfloat16":
            compared = compared.bfloat16()  # against a number torch rounds that number too
        blocked = (compared < threshold) & defined
        remaining = Remaining(self.pack, blocked) if self.config.drop_blocked else None
        return BridgeState(similarity, blocked, bias, remaining)

    def threshold(self, similarity: Tensor) -> Tensor | float:
        """tau: a number, or with `quantile` (L,), one value a reference image; `similarity` is (L,)."""
        if self.config.quantile is None:
            return self.config.threshold
        threshold = similarity.new_full((len(self.pack),), self.config.threshold)
        for vit, vae, *_ in self._image_pairs:
            of_image = similarity[vit].quantile(self.config.quantile, dim=1, keepdim=True)  # (images, 1)
            threshold[vit], threshold[vae] = of_image.expand(vit.shape), of_image.expand(vae.shape)
        return threshold
