"""From prompts to latents: prefill the contexts once, then Euler steps with guidance (SPEC 7).

Three contexts guide a picture: references + instruction, references only, instruction only. The second is the first
without its end, so two passes fill all three. Each step runs every branch of every picture as one packed sequence.

Shapes: B prompts, T target tokens of a picture, P values of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scone_pl import flow
from scone_pl.generation.cache import CachedPlan, ContextView, RecordingPlan
from scone_pl.generation.guidance import GuidanceConfig, guide
from scone_pl.model.config import BridgeConfig
from scone_pl.model.scone import ATTENTION_BACKENDS, Scone
from scone_pl.model.sequence import PackedSequence, SequenceBuilder, SequenceFormat, SplitKind
from scone_pl.model.vae import tokens_to_latents


@dataclass(frozen=True)
class Prompt:
    """What one picture is made from, ready for the model."""

    references: tuple[tuple[Tensor, Tensor], ...]
    """Per reference image its VAE and ViT version, each (3, H, W) in [-1, 1]."""
    text_ids: tuple[int, ...]
    """The instruction, without begin and end."""
    size: tuple[int, int]
    """Height and width of the picture in pixels."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How to sample; the defaults are Scone's published settings."""

    num_inference_steps: int = 49
    """Euler steps. The release counts time points: its `num_timesteps=50` is 49 here."""
    timestep_shift: float = 3.0
    """t -> shift t / (1 + (shift - 1) t)."""
    guidance: GuidanceConfig = GuidanceConfig()  # noqa: RUF009 (immutable)
    """Guidance scales."""
    bridge: BridgeConfig | None = None
    """Hide reference tokens from the picture by the understanding bridge; the release samples without."""


@dataclass(frozen=True)
class SampledLatents:
    """What sampling gives for one prompt."""

    tokens: Tensor
    """(T, P)."""
    grid: tuple[int, int]
    """Rows and columns of the tokens."""
    similarity: tuple[Tensor, ...] = ()
    """Per reference image the bridge's (rows, columns) map over its VAE tokens."""
    blocked: tuple[Tensor, ...] = ()
    """The same, as bool: hidden from the picture."""


StepCallback = Callable[[int, float, Tensor, Tensor], None]
"""Called after each step with its number, its t, the guided velocity and the latents, each (all target tokens, P)."""


@dataclass
class _Context:
    pack: PackedSequence
    record: RecordingPlan
    similarity: Tensor | None
    blocked: Tensor | None
    reference: Tensor
    next_position: list[int]
    text_length: list[int]


@torch.no_grad()
def sample(
    model: Scone,
    form: SequenceFormat,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    noise: Sequence[Tensor],
    on_step: StepCallback | None = None,
) -> list[SampledLatents]:
    """Samples all prompts side by side; how they are grouped does not change a picture.

    Args:
        model: in eval mode.
        form: of the model, with its special tokens.
        prompts: what to draw.
        config: how.
        noise: per prompt the initial (T, P).
        on_step: see `StepCallback`.
    """
    # Attention batches adjacent targets of equal layout, so those with equal contexts go side by side.
    order = sorted(range(len(prompts)), key=lambda i: _layout_key(prompts[i]))
    prompts, noise = [prompts[i] for i in order], [noise[i] for i in order]
    guidance = config.guidance
    full = _prefill(model, form, prompts, config.bridge, references=True)
    text_only = None
    if guidance.text_scale > 1 and guidance.needs_image_branch:
        text_only = _prefill(model, form, prompts, None, references=False)

    device = full.pack.device
    plain = _Branches(model, form, prompts, [_views(full)], [full.next_position], config.bridge)
    guided = plain
    if guidance.text_scale > 1:
        views = [_views(full), _views(full, without_text=True)]
        positions = [full.next_position, _positions_without_text(full)]
        if text_only is not None:
            views.append(_views(text_only))
            positions.append(text_only.next_position)
        guided = _Branches(model, form, prompts, views, positions, config.bridge)

    latents = torch.cat([n.to(device) for n in noise])
    sizes = [len(n) for n in noise]
    times = flow.time_grid(config.num_inference_steps, config.timestep_shift)
    for i in range(config.num_inference_steps):
        t = times[i].item()
        if guidance.active(t):
            parts = [branch.split(sizes) for branch in guided.velocity(latents, t)]
            no_image = parts[2] if len(parts) == 3 else (None,) * len(prompts)
            per_image = zip(parts[0], parts[1], no_image, strict=True)
            velocity = torch.cat([guide(guidance, *branches) for branches in per_image])
        else:
            velocity = plain.velocity(latents, t)[0]
        latents = flow.euler_step(latents, velocity, times[i].to(device), times[i + 1].to(device))
        if on_step is not None:
            on_step(i, t, velocity, latents)

    results: list[SampledLatents | None] = [None] * len(prompts)
    maps = _bridge_maps(full)
    for place, tokens, prompt, (similarity, blocked) in zip(order, latents.split(sizes), prompts, maps, strict=True):
        results[place] = SampledLatents(tokens, _grid(prompt, form), similarity, blocked)
    return results  # type: ignore[return-value]


class _Branches:
    """The target splits of some guidance branches, packed once for all steps."""

    def __init__(
        self,
        model: Scone,
        form: SequenceFormat,
        prompts: Sequence[Prompt],
        views: list[list[ContextView]],
        positions: list[list[int]],
        bridge: BridgeConfig | None,
    ) -> None:
        self.model = model
        self.num_branches = len(views)
        builder = SequenceBuilder(form)
        for branch in positions:
            for prompt, position in zip(prompts, branch, strict=True):
                builder.begin_sample(position=position)
                builder.add_targets(torch.empty(3, *prompt.size, device="meta"), [0.0])
        device = model.vae2llm.weight.device
        pack = builder.build()
        lengths = [split.length for split in pack.splits]
        self.pack = PackedSequence(**{**_fields(pack), "images": ()}).to(device)
        self.plan = CachedPlan([view for branch in views for view in branch], lengths, bridge)

    def velocity(self, latents: Tensor, t: float) -> list[Tensor]:
        """`latents` (all target tokens, P) -> one velocity of that shape per branch."""
        times = torch.full((len(self.pack.latent_splits),), t, device=latents.device)
        repeated = latents.repeat(self.num_branches, 1)
        output = self.model(self.pack, repeated, times, plan=self.plan)
        return list(output.velocity.float().chunk(self.num_branches))


def _fields(pack: PackedSequence) -> dict[str, object]:
    return {name: getattr(pack, name) for name in pack.__dataclass_fields__}


def _layout_key(prompt: Prompt) -> tuple[object, ...]:
    shapes = tuple((vae.shape, vit.shape) for vae, vit in prompt.references)
    return (prompt.size, len(prompt.references), len(prompt.text_ids), str(shapes))


def _grid(prompt: Prompt, form: SequenceFormat) -> tuple[int, int]:
    return prompt.size[0] // form.latent_stride, prompt.size[1] // form.latent_stride


def _prefill(
    model: Scone, form: SequenceFormat, prompts: Sequence[Prompt], bridge: BridgeConfig | None, *, references: bool
) -> _Context:
    """Runs the contexts of all prompts once, keeping keys and values."""
    builder = SequenceBuilder(form)
    positions, text_lengths = [], []
    for prompt in prompts:
        builder.begin_sample()
        for i, (vae, vit) in enumerate(prompt.references if references else ()):
            builder.add_vae(vae, reference=i)
            builder.add_vit(vit, reference=i)
        if prompt.text_ids:
            builder.add_text(list(prompt.text_ids))
        positions.append(builder.position)
        text_lengths.append(len(prompt.text_ids) + 2 if prompt.text_ids else 0)
    pack = builder.build().to(model.vae2llm.weight.device)
    record = RecordingPlan(ATTENTION_BACKENDS[model.attention](pack))  # type: ignore[call-arg]
    similarity = blocked = None
    if len(pack):
        times = torch.zeros(len(pack.latent_splits), device=pack.device)
        state = model(pack, model.encode_images(pack), times, bridge, record).bridge
        if state is not None:
            similarity, blocked = state.similarity, state.blocked
    return _Context(pack, record, similarity, blocked, pack.reference_tokens, positions, text_lengths)


def _bounds(context: _Context) -> list[tuple[int, int]]:
    bounds, start = [], 0
    by_sample = {s.sample: s.stop for s in context.pack.splits}
    for i in range(len(context.next_position)):
        stop = by_sample.get(i, start)
        bounds.append((start, stop))
        start = stop
    return bounds


def _views(context: _Context, *, without_text: bool = False) -> list[ContextView]:
    """What each prompt's target sees. Without the instruction there is no mask, as in training (SPEC 5)."""
    views = []
    for (start, stop), text_length in zip(_bounds(context), context.text_length, strict=True):
        if without_text:
            stop -= text_length
        hidden = shown = None
        if context.blocked is not None:
            shown = context.reference[start:stop]
            hidden = torch.zeros_like(shown) if without_text else context.blocked[start:stop]
        views.append(ContextView(context.record, start, stop, hidden, shown))
    return views


def _positions_without_text(context: _Context) -> list[int]:
    return [p - n for p, n in zip(context.next_position, context.text_length, strict=True)]


def _bridge_maps(context: _Context) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Per prompt the similarity and blocked maps over the VAE tokens of its references."""
    maps = []
    for i in range(len(context.next_position)):
        if context.similarity is None or context.blocked is None or i >= context.pack.num_samples:
            maps.append(((), ()))
            continue
        splits = [s for s in context.pack.by_sample[i] if s.kind == SplitKind.VAE]
        both = [
            (
                context.similarity[s.start + 1 : s.stop - 1].view(s.grid),
                context.blocked[s.start + 1 : s.stop - 1].view(s.grid),
            )  # type: ignore[arg-type]
            for s in splits
        ]
        maps.append((tuple(s for s, _ in both), tuple(b for _, b in both)))
    return maps


def initial_noise(
    prompt: Prompt, model: Scone, form: SequenceFormat, generator: torch.Generator | None = None
) -> Tensor:
    """(T, P) float32 drawn on the CPU, so that the device does not change a picture."""
    rows, columns = _grid(prompt, form)
    return torch.randn(rows * columns, model.config.latent_token_size, generator=generator)


@torch.no_grad()
def decode_latents(model: Scone, result: SampledLatents) -> Tensor:
    """(3, H, W) float in [-1, 1]."""
    latents = tokens_to_latents(result.tokens, result.grid, model.config.latent_patch_size)
    return model.autoencoder.decode(latents[None])[0].float().clamp(-1, 1)


def to_uint8(image: Tensor) -> Tensor:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((image * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu()
