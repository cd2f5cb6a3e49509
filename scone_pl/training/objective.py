"""What a stage minimises: losses that add up over packs and ranks (docs/specification.md 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scone_pl.data.seeding import seed_of
from scone_pl.data.stream import Batch
from scone_pl.model.bridge import Bridge, BridgeState
from scone_pl.model.config import BridgeConfig
from scone_pl.model.indices import to_device
from scone_pl.model.network import Network
from scone_pl.training import losses
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.settings import StageSettings


@dataclass(frozen=True)
class PackLosses:
    """Sums over the tokens of one pack; all are scalars on the device."""

    squared_error: Tensor
    """Over target tokens, of the mean over a token's values, weighted (`PackedSequence.target_weights`)."""
    cross_entropy: Tensor
    """Over the labels of text."""
    alignment: Tensor | None = None
    """A mean already; None without supervision of the bridge."""
    bridge: BridgeState | None = None
    """What the bridge computed, if there is one."""


@dataclass(frozen=True)
class StepLosses:
    """What one pack adds to the losses of an optimizer step; their mean over packs and ranks is the step's."""

    total: Tensor
    """The loss that is minimised."""
    flow: Tensor
    text: Tensor
    alignment: Tensor | None

    def named(self) -> dict[str, Tensor]:
        """By the names they are logged under, without graph."""
        named = {"loss": self.total, "flow": self.flow, "text": self.text}
        if self.alignment is not None:
            named["alignment"] = self.alignment
        return {name: value.detach() for name, value in named.items()}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Flow matching on target tokens, cross-entropy on labelled text, and optional supervision of the bridge."""

    bridge: BridgeConfig | None = None
    timestep_shift: float = 1.0
    text_loss_weight: float = 1.0
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    @classmethod
    def of(cls, settings: StageSettings) -> Objective:
        """The objective of a stage."""
        return cls(
            bridge=settings.bridge,
            timestep_shift=settings.timestep_shift,
            text_loss_weight=settings.text_loss_weight,
            alignment=settings.alignment,
        )

    @property
    def aligned(self) -> bool:
        """Whether the bridge's similarity is supervised."""
        return self.alignment.weight > 0

    def pack_losses(self, model: Network, batch: Batch, device: torch.device, *, sample_posterior: bool) -> PackLosses:
        """Encodes the images of a pack, noises the targets, and compares.

        All noise depends on the batch's own seed: neither ranks nor resuming change it.

        Args:
            model: the network.
            batch: a pack and its seed.
            device: of both.
            sample_posterior: draw latents from the autoencoder's posterior instead of taking its mean.
        """
        pack = batch.sequence
        with torch.no_grad():
            posterior = torch.Generator(device).manual_seed(seed_of("posterior", batch.seed))
            clean = model.encode_images(pack, posterior, sample=sample_posterior).float()
        generator = torch.Generator().manual_seed(seed_of("noise", batch.seed))
        noise = to_device(torch.randn(clean.shape, generator=generator), clean.device)
        result = losses.flow_matching(
            model,
            pack,
            clean,
            noise,
            bridge=self.bridge,
            timestep_shift=self.timestep_shift,
            similarity_grad=self.aligned,
        )
        state, alignment = result.output.bridge, None
        if self.aligned and state is not None and self.bridge is not None:
            threshold = Bridge(self.bridge, pack).threshold(state.similarity.detach())
            alignment = losses.alignment(state, pack, threshold, self.alignment.temperature)
        error, weights = result.squared_error.mean(-1), pack.target_weights
        return PackLosses(
            squared_error=(error if weights is None else error * weights).sum(),
            cross_entropy=losses.text_cross_entropy(result.output, pack),
            alignment=alignment,
            bridge=state,
        )

    def step_losses(self, pack: PackLosses, *, targets: float, labels: int, packs: int) -> StepLosses:
        """What a pack adds to an optimizer step.

        Lightning averages gradients over ranks and over the packs of a step. So sums are divided by the mean count of
        a pack: every token of all ranks and packs weighs the same (docs/specification.md 4).

        Args:
            pack: its sums.
            targets: weights of the target tokens of all packs of the step, on all ranks.
            labels: labels of text of all packs of the step, on all ranks.
            packs: number of packs of the step, on all ranks.
        """
        flow = pack.squared_error * (packs / max(targets, 1))
        text = pack.cross_entropy * (packs / max(labels, 1))
        # Without labels the text loss is an exact 0 that still ties the language head into the graph.
        total = flow + self.text_loss_weight * text
        if pack.alignment is not None:
            total = total + self.alignment.weight * pack.alignment
        return StepLosses(total, flow, text, pack.alignment)
