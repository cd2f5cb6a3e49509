"""Activations of a training step, measured by running it on the meta device with real sizes and counting live bytes.

No formula has to follow the model: what the code keeps is what is counted. A decoder of two and one of three layers
are run; the rest follows, as every layer adds the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from scone_pl.estimate.tracking import LiveBytes, fused_attention, fused_kernels
from scone_pl.model.attention import ATTENTION_BACKENDS, AttentionPlan
from scone_pl.model.attention.flex import BLOCK_SIZE
from scone_pl.model.config import NetworkConfig
from scone_pl.model.lora import LoRAConfig
from scone_pl.model.quantized import Quantization
from scone_pl.model.sequence import PackedSequence
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.network import network_on_meta
from scone_pl.training.parts import Part


@dataclass(frozen=True)
class StepActivations:
    """Bytes of one pack's forward and backward beside weights and gradients, per rank."""

    kept: int
    """After the forward: what the backward needs."""
    peak: int
    """The maximum during forward and backward."""

    def interpolate(self, other: StepActivations, fraction: float) -> StepActivations:
        """If a fraction of the layers is as in `other`."""
        kept, peak = (round(a + fraction * (b - a)) for a, b in ((self.kept, other.kept), (self.peak, other.peak)))
        return StepActivations(kept, peak)


class _FlexSizes(AttentionPlan):
    """Sizes of `FlexPlan`: everything padded to whole blocks."""

    def __init__(self, length: int) -> None:
        self.padding = -length % BLOCK_SIZE

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        q, k, v = (F.pad(x.transpose(0, 1)[None], (0, 0, 0, self.padding)) for x in (q, k, v))
        attended = fused_attention(q, k, v)[0]
        return attended[:, : attended.shape[1] - self.padding].transpose(0, 1)

    def hiding(self, blocked: Tensor) -> AttentionPlan:
        return self


def to_meta(pack: PackedSequence) -> PackedSequence:
    """The pack without contents, with every index tensor that depends on them there already."""
    moved = pack.to("meta")
    for name, attribute in vars(PackedSequence).items():
        if isinstance(attribute, cached_property):
            value = getattr(pack, name)
            vars(moved)[name] = value.to("meta") if isinstance(value, Tensor) else value
    return moved


def step_activations(
    config: NetworkConfig,
    pack: PackedSequence,
    trained: Collection[Part],
    *,
    attention: str = "split",
    checkpointing: bool = True,
    recompute_attention: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    lora: LoRAConfig | None = None,
    quantization: Quantization | None = None,
) -> StepActivations:
    """Activations of one pack at all layers of `config`.

    Args:
        config: the network.
        pack: the sequence; only its structure matters.
        trained: parts that train.
        attention: backend, `split`, `varlen` or `flex`.
        checkpointing: whether decoder layers are recomputed in the backward pass.
        recompute_attention: whether attention is recomputed with them.
        dtype: that weights and activations compute in.
        lora: adapters of the experts, if these train instead of them.
        quantization: of the decoder layers' weights.
    """
    meta = to_meta(pack)
    kept, peaks = [], []
    for layers in (2, 3):
        small = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=layers))
        run = dry_step(
            small,
            meta,
            trained,
            attention=attention,
            checkpointing=checkpointing,
            dtype=dtype,
            lora=lora,
            quantization=quantization,
        )
        kept.append(run.kept)
        peaks.append(run.peak)
    layers, decoder = config.decoder.num_layers, config.decoder
    # What attention kernels return: the output, and a float32 a query and head.
    width = decoder.num_heads * (decoder.head_dim * dtype.itemsize + 4)
    attended = layers * len(pack) * width if checkpointing and not recompute_attention else 0
    return StepActivations(
        kept=kept[0] + (layers - 2) * (kept[1] - kept[0]) + attended,
        peak=peaks[0] + (layers - 2) * (peaks[1] - peaks[0]) + attended,
    )


def dry_step(
    config: NetworkConfig,
    pack: PackedSequence,
    trained: Collection[Part],
    *,
    attention: str,
    checkpointing: bool,
    dtype: torch.dtype,
    lora: LoRAConfig | None = None,
    quantization: Quantization | None = None,
    layers_kept: int = 0,
) -> StepActivations:
    """Forward and backward of a pack `to_meta`, counting; arguments as in `step_activations`."""
    model = network_on_meta(config, trained, lora, dtype, quantization).train()
    clean = torch.empty(len(pack.latent_index), config.latent_token_size, device="meta")
    noise = torch.empty_like(clean)
    model.language_model.model.activation_checkpointing = checkpointing
    model.language_model.model.layers_kept = layers_kept
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    plan = _FlexSizes(len(pack)) if attention == "flex" else ATTENTION_BACKENDS[attention](pack)  # type: ignore[call-arg]  # classes of one signature
    model.forward = partial(model.forward, plan=plan)  # type: ignore[method-assign]  # patched on this instance
    with LiveBytes() as live, fused_kernels():
        live.ignore(*model.parameters(), *model.buffers(), clean, noise)
        result = flow_matching(model, pack, clean, noise)
        loss = result.squared_error.mean() + text_cross_entropy(result.output, pack)
        del result
        kept = live.now
        loss.backward()
    return StepActivations(kept, live.peak)


def _drop_gradient(parameter: Tensor) -> None:
    """Gradients are counted apart; here each goes as soon as it is there."""
    parameter.grad = None
