"""The release's algorithm, plainly, on the same weights: what training and sampling are compared with.

Written from docs/specification.md, in the way that the release does it:

- training: each operation by itself under autograd; tokens of the two experts written into tensors of the whole
  sequence by index; keys and values repeated for grouped heads; one dense float mask a sample, to which the bridge adds
  a dense bias in each of its layers;
- sampling: a cache of keys and values for each of the three contexts (full, references alone, text alone); every step
  runs the branches one after the other and concatenates cache and own keys in every layer.

Numbers agree with scone_pl's to rounding, as `tests/test_benchmarks.py` checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl import flow
from scone_pl.model.attention import AttentionPlan, dense_mask
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.decoder import DecoderLayer
from scone_pl.model.experts import ByExpert, Routing, generation_module
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence, SequenceFormat
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.settings import SamplingConfig

guide = RULES["two_conditions"].guide

Rotary = tuple[Tensor, Tensor]


class ReleasePlan(AttentionPlan):
    """A dense float mask for each sample, and in masked layers a dense bias beside it."""

    def __init__(self, pack: PackedSequence, dtype: torch.dtype = torch.float32) -> None:
        """`dtype`: of queries and keys, as the mask is added to their products."""
        self.pack, self.dtype = pack, dtype
        self.lengths = [splits[-1].stop - splits[0].start for splits in pack.by_sample]
        self.masks = [self._float(~allowed) for allowed in self._of_samples(dense_mask(pack))]
        self.biases: list[Tensor] | None = None

    def _of_samples(self, x: Tensor) -> list[Tensor]:
        """(L, L) -> per sample (S, S)."""
        edges = [splits[0].start for splits in self.pack.by_sample]
        return [x[e : e + n, e : e + n].clone() for e, n in zip(edges, self.lengths, strict=True)]

    def _float(self, hidden: Tensor) -> Tensor:
        zeros = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device)
        return zeros.masked_fill_(hidden, -torch.inf)

    def hiding(self, blocked: Tensor) -> ReleasePlan:
        return self.biased(self._float(blocked))

    def biased(self, bias: Tensor) -> ReleasePlan:
        plan = ReleasePlan.__new__(ReleasePlan)
        plan.pack, plan.dtype, plan.lengths, plan.masks = self.pack, self.dtype, self.lengths, self.masks
        plan.biases = self._of_samples(torch.where(self.pack.target_tokens[:, None], bias.to(self.dtype), 0.0))
        return plan

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        outputs = []
        parts = zip(*(x.transpose(0, 1).split(self.lengths, dim=1) for x in (q, k, v)), strict=True)
        for i, (qs, ks, vs) in enumerate(parts):
            mask = self.masks[i] if self.biases is None else self.masks[i] + self.biases[i]
            outputs.append(F.scaled_dot_product_attention(qs[None], ks[None], vs[None], attn_mask=mask[None, None])[0])
        return torch.cat(outputs, dim=1).transpose(0, 1)


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    wide = x.float()
    return norm.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)).to(x.dtype)


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = (table.to(x.dtype) for table in (rotary[0], torch.cat([rotary[1], rotary[1]], dim=-1)))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _layer_forward(
    layer: DecoderLayer,
    understanding: Tensor,
    generation: Tensor,
    routing: Routing,
    rotary: Rotary,
    plan: AttentionPlan,
) -> ByExpert:
    """`DecoderLayer.forward` on tensors of the whole sequence."""
    attention, index = layer.self_attn, (routing.understanding_index, routing.generation_index)
    length = routing.length

    def whole(parts: tuple[Tensor, Tensor]) -> Tensor:
        x = parts[0].new_zeros(length, *parts[0].shape[1:])
        for rows, part in zip(index, parts, strict=True):
            x[rows] = part
        return x

    def by_expert(owner: nn.Module, name: str, x: Tensor, apply: object = None) -> Tensor:
        modules = getattr(owner, name), generation_module(owner, name)
        return whole(tuple(apply(x[rows], m) if apply else m(x[rows]) for rows, m in zip(index, modules, strict=True)))  # type: ignore[operator]

    x = whole((understanding, generation))
    normed = by_expert(layer, "input_layernorm", x, _norm)
    q, k, v = (by_expert(attention, f"{n}_proj", normed).unflatten(-1, (-1, attention.head_dim)) for n in "qkv")
    q, k = by_expert(attention, "q_norm", q, _norm), by_expert(attention, "k_norm", k, _norm)
    attended = plan(_rotate(q, rotary), _rotate(k, rotary), v, layer.layer).flatten(1)
    x = x + by_expert(attention, "o_proj", attended)
    normed = by_expert(layer, "post_attention_layernorm", x, _norm)
    x = x + by_expert(layer, "mlp", normed, lambda y, m: m.down_proj(F.silu(m.gate_proj(y)) * m.up_proj(y)))
    return ByExpert(*(x[rows] for rows in index))


@contextmanager
def release_layers() -> Iterator[None]:
    """Runs decoder layers as the release does; attention is the plan's, see `ReleasePlan`."""
    original = DecoderLayer.forward
    DecoderLayer.forward = _layer_forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DecoderLayer.forward = original  # type: ignore[method-assign]


class _Recording(ReleasePlan):
    """Keeps keys and values of a context."""

    def __init__(self, pack: PackedSequence) -> None:
        super().__init__(pack)
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        self.cache[layer] = k, v
        return super().__call__(q, k, v, layer)


class _Cached(AttentionPlan):
    """A target over a cached context."""

    def __init__(self, cache: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.cache = cache

    def hiding(self, blocked: Tensor) -> AttentionPlan:
        raise NotImplementedError("the release samples without the mask")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        if layer in self.cache:
            k, v = (torch.cat(pair) for pair in zip(self.cache[layer], (k, v), strict=True))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


@torch.no_grad()
def sample(
    model: Scone, sequence_format: SequenceFormat, prompt: Prompt, noise: Tensor, config: SamplingConfig
) -> Iterator[Tensor]:
    """The latents after each step; the first step includes the contexts."""
    branches = []
    for references, text in ((True, True), (True, False), (False, True)):
        builder = SequenceBuilder(sequence_format)
        builder.begin_sample()
        for i, (vae, vit) in enumerate(prompt.references if references else ()):
            builder.add_vae(vae, reference=i)
            builder.add_vit(vit, reference=i)
        if text:
            builder.add_text(list(prompt.text_ids or ()))
        context = builder.build()
        recording = _Recording(context)
        with release_layers():
            times = torch.zeros(len(context.latent_splits))
            model(context, model.encode_images(context), times, plan=recording)
        target = SequenceBuilder(sequence_format)
        target.begin_sample(position=builder.position)
        target.add_targets(torch.zeros(3, *prompt.size), [0.0])
        branches.append((target.build(), _Cached(recording.cache)))
    times, latents = flow.time_grid(config.num_inference_steps, config.timestep_shift), noise
    for now, then in pairwise(times):
        with release_layers():
            velocities = [model(pack, latents, now.expand(1), plan=plan).velocity for pack, plan in branches]
        latents = flow.euler_step(latents, guide(config, *velocities), now, then)
        yield latents
