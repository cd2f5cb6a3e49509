"""How much memory generating needs, from the config alone.

What is kept where, on one GPU of 40 GB in bf16 (7B, 1024 x 1024 images): everything stays on the GPU, unless less is
asked for (`Saving`).

- weights 29 GB. Both experts are needed in every step: the target's start and end tokens are text tokens, so they
  pass through the understanding expert in every layer, and the target's latents through the generation expert.
  Offloading the understanding expert between prefill and decoding would mean copying 14 GB back for two tokens a
  step. ViT and autoencoder are under 1.1 GB together, not worth moving either.
- keys and values of the contexts: 56 kB a token and branch cache. The context without instruction is a part of the
  full one and costs nothing (`cache.py`); what the bridge blocks is a part of it too.
- references go through the autoencoder one by one (those of equal size together up to a megapixel), before the
  decoder runs, so their activations never meet the cache.
- the image is decoded after the caches are freed. At 1024 x 1024 it takes about 2 GB in bf16, 4 GB in float32:
  less than what sampling needed, so it is tiled on request only (tiles change the image: GroupNorm and the mid
  attention see the whole).

With four references of 1024 x 1024 the peak stays under 36 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from scone_pl.model.config import NetworkConfig
from scone_pl.model.quantized import Quantization, quantize_layers
from scone_pl.model.sequence import SequenceFormat
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.offload import Offload, text_tables, visitors
from scone_pl.sampling.settings import SamplingConfig

_MLP_TENSORS = 3
"""Gate after its SiLU, up, and their product are there at a time (`GatedMLP`)."""
_STREAM_TENSORS = 3
"""Beside them: the residual stream, its normed copy, the other expert's result."""
_ATTENTION_TENSORS = 9
"""Stream, normed copy, queries, keys, values before and after rotary positions, the result before and after merging;
each no wider than the hidden size."""
_CONVOLUTION_TENSORS = 4
"""Input, normed and activated copy, output of a residual block. The convolution library's workspace comes on top."""


@dataclass(frozen=True)
class TokenCount:
    """Tokens of one prompt."""

    vae: int
    """Of all references, without frames."""
    vit: int
    frames: int
    """Start and end tokens of the references' splits."""
    text: int
    """Instruction with begin and end."""
    target: int
    """Of the target, with start and end."""

    @property
    def context(self) -> int:
        return self.vae + self.vit + self.frames + self.text


def count_prompt(prompt: Prompt, sequence_format: SequenceFormat) -> TokenCount:
    """Counts a prompt."""
    layout, stride = sequence_format.layout, sequence_format.latent_stride
    text, frames = layout.context_words(len(prompt.references), prompt.text_ids)

    def tokens(size: Sequence[int], stride: int) -> int:
        height, width = size
        return (height // stride) * (width // stride)

    return TokenCount(
        vae=0 if layout.single_stream else sum(tokens(vae.shape[-2:], stride) for vae, _ in prompt.references),
        vit=sum(tokens(vit.shape[-2:], sequence_format.vit_patch_size) for _, vit in prompt.references),
        frames=frames,
        text=text,
        target=tokens(prompt.size, stride) + 2 * layout.frame,
    )


@dataclass(frozen=True)
class Saving:
    """How memory is saved."""

    quantization: Quantization | None = None
    offload: Offload | None = None
    tile: int | None = None
    """Side of the autoencoder's tiles in pixels; None = images as a whole."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes; activations are estimates, weights and caches exact."""

    weights: int
    """That are always on the device; what an offload brings there for a phase counts with the phase."""
    caches: int
    """Keys and values of all contexts, with room for the targets' own."""
    recorded: int
    """Keys and values as the prefill leaves them, before the caches are laid out."""
    encode: int
    """Activations of encoding the references."""
    prefill: int
    step: int
    decode: int

    @property
    def peak(self) -> int:
        """Weights and the worst phase."""
        return self.weights + max(self.encode, self.recorded + self.prefill, self.caches + self.step, self.decode)

    def report(self) -> str:
        """A line a phase, in GB (10^9 bytes)."""
        phases = {
            "encode references": self.encode,
            "prefill contexts": self.recorded + self.prefill,
            "denoise": self.caches + self.step,
            "decode image": self.decode,
        }
        lines = [
            f"{'weights':<20} {self.weights / 1e9:8.3f} GB",
            f"{'key/value caches':<20} {self.caches / 1e9:8.3f} GB",
        ]
        lines += [f"{name:<20} {(self.weights + more) / 1e9:8.3f} GB with weights" for name, more in phases.items()]
        return "\n".join([*lines, f"{'peak':<20} {self.peak / 1e9:8.3f} GB"])


def estimate_memory(
    config: NetworkConfig,
    sequence_format: SequenceFormat,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    dtype: torch.dtype = torch.bfloat16,
    saving: Saving = Saving(),
) -> MemoryEstimate:
    """Memory of `sample` and `decode_latents` for prompts that are sampled side by side.

    Args:
        config: of the model.
        sequence_format: of the model.
        prompts: what to generate.
        sampling: decides the guidance branches.
        dtype: of weights and activations.
        saving: how memory is saved.
    """
    size = dtype.itemsize
    decoder = config.decoder
    counts = [count_prompt(prompt, sequence_format) for prompt in prompts]
    bytes_per_token = decoder.num_layers * 2 * decoder.num_kv_heads * decoder.head_dim * size
    guided = sampling.guidance_scale > 1
    text_only = guided and sampling.needs_image_branch and any(p.references for p in prompts)
    caches = sum(c.context + c.target for c in counts)
    if text_only:
        caches += sum(c.text + c.target for c in counts)
    negatives = [count_prompt(p.negative, sequence_format) for p in prompts]
    negative = guided and any(p.negative_ids is not None for p in prompts)
    if negative:
        caches += sum(c.context + c.target for c in negatives)
    branches = 1 + guided + text_only
    context = sum(c.context for c in counts)
    # The context of a negative prompt is recorded while the caches of the full one are there.
    recorded = context + (sum(c.context for c in negatives) if negative else 0)
    context_latents = sum(c.vae for c in counts)
    targets = branches * sum(c.target for c in counts)
    frame = 2 * sequence_format.layout.frame
    latents = sum(c.target - frame for c in counts) * config.latent_token_size * 4
    references = [vae.shape[-2:] for prompt in prompts for vae, _ in prompt.references]
    pixels = sum(h * w for h, w in references)
    # `Autoencoder.encode_each` takes images of one size together up to 2^20 pixels.
    together = max([h * w for h, w in references] + [min(pixels, 2**20)], default=0)
    largest = max([h * w for h, w in references], default=1)
    decoded = max(h * w for h, w in (p.size for p in prompts))
    decoding = 0
    if saving.tile is not None:  # beside a tile, the blended result and its sums of weights
        together = min(together, max(1, 2**20 // largest) * saving.tile**2)
        decoding, decoded = 2 * 4 * decoded * size, min(decoded, saving.tile**2)
    weights = _weights(config, dtype, saving)
    restored = 0
    if saving.quantization is not None:
        restored = config.decoder.hidden_size * config.decoder.intermediate_size * size
    layer = weights.layer + restored
    inputs = _inputs(config, sequence_format, counts)
    return MemoryEstimate(
        weights=weights.resident,
        caches=caches * bytes_per_token,
        recorded=recorded * bytes_per_token,
        encode=weights.autoencoder + _convolutions(config, together, size, decoding=False) if references else 0,
        prefill=inputs + max(layer + _layer(config, context - context_latents, context_latents, size), weights.vit),
        # Latents are there once and once a branch while the layers run, velocities and what guides them afterwards.
        step=max(
            layer
            + _layer(config, frame * branches * len(prompts), targets - frame * branches * len(prompts), size)
            + (1 + branches) * latents,
            (4 + 2 * branches) * latents,
        ),
        decode=weights.autoencoder + decoding + _convolutions(config, decoded, size, decoding=True),
    )


@dataclass(frozen=True)
class _Weights:
    """Bytes of weights on the device: always, and what an offload brings for a phase."""

    resident: int
    layer: int
    vit: int
    autoencoder: int


def _weights(config: NetworkConfig, dtype: torch.dtype, saving: Saving) -> _Weights:
    """Exact, of a model without memory."""
    with torch.device("meta"):
        model = config.build()
        if saving.quantization is not None:
            quantize_layers(model.language_model.model.layers, saving.quantization)
    model.to(dtype)
    away = 0
    brought: dict[str, int] = {"layer": 0, "vit": 0, "autoencoder": 0}
    if saving.offload is not None:
        away = sum(module_bytes(m) for m in (*visitors(model, saving.offload), *text_tables(model)))
        brought["vit"] = max(map(module_bytes, model.towers))
        brought["autoencoder"] = module_bytes(model.autoencoder)
    if saving.offload == "sequential":
        brought["layer"] = module_bytes(model.language_model.model.layers[0])
    return _Weights(module_bytes(model) - away, **brought)


def module_bytes(module: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def weight_bytes(config: NetworkConfig, dtype: torch.dtype, saving: Saving | None = None) -> int:
    """All parameters and the fixed position tables, autoencoder included; exact.

    Args:
        config: of the model.
        dtype: of the weights.
        saving: how memory is saved: of an offload, what is always on the device counts.
    """
    return _weights(config, dtype, saving or Saving()).resident


def _inputs(config: NetworkConfig, sequence_format: SequenceFormat, counts: Sequence[TokenCount]) -> int:
    """Pixels of the ViT patches and latent tokens, float32, each there as parts and as one sequence."""
    patch, latent = 3 * sequence_format.vit_patch_size**2, config.latent_token_size
    return sum(2 * 4 * (c.vit * patch + c.vae * latent) for c in counts)


def _layer(config: NetworkConfig, understanding: int, generation: int, size: int) -> int:
    """Activations of one decoder layer: the larger of its MLP (one expert at a time), its norms and its attention."""
    hidden, inner = config.decoder.hidden_size, config.decoder.intermediate_size
    tokens, most = understanding + generation, max(understanding, generation)
    mlp = (_MLP_TENSORS * most * inner + _STREAM_TENSORS * tokens * hidden) * size
    attention = _ATTENTION_TENSORS * tokens * hidden * size
    norms = 3 * most * hidden * 4 + 2 * tokens * hidden * size  # computed in float32
    return max(mlp, attention, norms)


def _convolutions(config: NetworkConfig, pixels: int, size: int, *, decoding: bool) -> int:
    """Activations of the autoencoder where it is widest: at full resolution."""
    autoencoder = config.autoencoder
    if autoencoder.kind == "space_to_depth":
        return 3 * 3 * 4 * pixels
    # The decoder's last stage begins with the channels of the stage below it.
    multiplier = autoencoder.channel_multipliers[min(1, len(autoencoder.channel_multipliers) - 1)] if decoding else 1
    return _CONVOLUTION_TENSORS * autoencoder.base_channels * multiplier * pixels * size
