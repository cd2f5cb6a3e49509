"""From prompts to latents: prefill the contexts once, then Euler steps with guidance (docs/specification.md 7).

Three contexts guide an image: references + instruction, references only, instruction only. The second is the first
without its end, so two passes fill all three and two caches hold them. A negative prompt makes the second a context of
its own: references + negative prompt. Each step runs every branch of every image as one packed sequence.

Shapes: B prompts, T target tokens of an image, P values of a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from scone_pl import flow
from scone_pl.errors import UserError
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.network import Network
from scone_pl.model.sequence import SequenceFormat
from scone_pl.sampling.cache import Branch, CachedPlan
from scone_pl.sampling.context import Contexts, Prompt, prefill
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.sampling.step_cache import StepCache


@dataclass(frozen=True)
class SampledLatents:
    """Result of sampling for one prompt."""

    tokens: Tensor
    """(T, P)."""
    grid: tuple[int, int]
    """Rows and columns of the tokens."""
    similarity: tuple[Tensor, ...] = ()
    """Per reference image the bridge's (rows, columns) map over its VAE tokens."""
    blocked: tuple[Tensor, ...] = ()
    """The same, as bool: hidden from the target."""


StepCallback = Callable[[int, float, Tensor, Tensor], Tensor | bool | None]
"""Called after each step with its number, its t, the guided velocity and the latents, each (all target tokens, P).
Returns the latents with which to continue, None = unchanged, or False = stop here."""


@torch.no_grad()
def sample(
    model: Network,
    sequence_format: SequenceFormat,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    noise: Sequence[Tensor],
    on_step: StepCallback | None = None,
) -> list[SampledLatents]:
    """Samples all prompts in one batch; the grouping does not affect any image.

    Args:
        model: in eval mode.
        sequence_format: of the model, with its special tokens.
        prompts: what to generate.
        config: settings; sizes and noise are those of `prompts` and `noise`.
        noise: per prompt the initial (T, P), standard normal.
        on_step: see `StepCallback`.
    """
    # Attention batches adjacent targets of equal layout, so those with equal contexts are placed next to each other.
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].layout)
    prompts, noise = [prompts[i] for i in order], [noise[i] for i in order]
    branches = _GuidanceBranches(model, sequence_format, prompts, config)
    device = model.device
    sizes = [len(n) for n in noise]
    scales = model.noise_scales(sizes, sampling=True)
    if scales is not None:
        noise = [n * scale for n, scale in zip(noise, scales.tolist(), strict=True)]
    latents = torch.cat([n.to(device) for n in noise])
    rule = RULES[model.config.guidance]
    times = flow.time_grid(config.num_inference_steps, config.timestep_shift)
    cache = StepCache(config.passes[1], config.num_inference_steps)
    for i in range(config.num_inference_steps):
        t = times[i].item()
        guided = rule.guided_at(config, times[i])
        velocity = cache.guess(i, t, guided=guided)
        if velocity is None:
            velocity = branches.velocity(latents, t, sizes, guided=guided)
            cache.computed(t, velocity)
        latents = flow.euler_step(latents, velocity, times[i].to(device), times[i + 1].to(device))
        if on_step is not None:
            changed = on_step(i, t, velocity, latents)
            if isinstance(changed, Tensor):
                latents = changed
            elif changed is False:
                break

    results: list[SampledLatents | None] = [None] * len(prompts)
    maps = branches.full.bridge_maps()
    for index, tokens, prompt, bridge_maps in zip(order, latents.split(sizes), prompts, maps, strict=True):
        results[index] = SampledLatents(tokens, prompt.grid(sequence_format), *bridge_maps)
    return results  # type: ignore[return-value]  # every result is set


class _GuidanceBranches:
    """The contexts that guide some images, and their velocities."""

    def __init__(
        self, model: Network, sequence_format: SequenceFormat, prompts: Sequence[Prompt], config: SamplingConfig
    ) -> None:
        self.model, self.sequence_format, self.config = model, sequence_format, config
        self.rule, layout = RULES[model.config.guidance], sequence_format.layout
        shown = partial(prefill, model, sequence_format, references=True, rebalancing=config.attention_rebalancing)
        self.full = shown(prompts, config.bridge)
        negative = any(p.negative_ids is not None for p in prompts)
        self._needs = self.rule.needs(config, negative=negative)
        # Without references the context "instruction only" is the full one: nothing to compute twice. But sharded, all
        # ranks must make the same passes, whatever their prompts.
        differs = model.runs_towers_always or any(p.references for p in prompts) or not self.rule.third_has_text
        self._age = 0
        """Guided steps since guidance began to act."""
        self._differences: list[Tensor] = []
        """Velocities of the other branches minus the full one's, when they were last computed."""
        self._no_text: tuple[Contexts, bool] = (self.full, False)
        """A context, and whether all of it is used or only what comes before its instruction."""
        self._no_image: tuple[Contexts, bool] | None = None
        if not self.rule.acts(config):
            return
        if negative:
            others = [p.negative for p in prompts]
            self._no_text = (shown(others, config.bridge, hide_blocked=False), True)
        elif self._needs[0] and not layout.text_at_end:
            self._no_text = (shown(prompts, config.bridge, text=False, hide_blocked=False), True)
        if self._needs[1] and differs:
            text = self.rule.third_has_text
            self._no_image = (prefill(model, sequence_format, prompts, None, references=False, text=text), True)

    def velocity(self, latents: Tensor, t: float, sizes: list[int], *, guided: bool) -> Tensor:
        """`latents` (all target tokens, P) at time `t`, `sizes` tokens each -> the velocity, of that shape."""
        if not guided:
            self._age = 0
            return self._plain.velocity(latents, t)[0]
        if self._age % self.config.passes[0]:
            [full] = self._plain.velocity(latents, t)
            others = [full + difference for difference in self._differences]
        else:
            full, *others = self._guided.velocity(latents, t)
            self._differences = [other - full for other in others]
        self._age += 1
        absent: list[Tensor | None] = [None] * len(sizes)
        no_text = list(others.pop(0).split(sizes)) if self._needs[0] else absent
        no_image = list((others[0] if others else full).split(sizes)) if self._needs[1] else absent
        per_image = zip(full.split(sizes), no_text, no_image, strict=True)
        return torch.cat([self.rule.guide(self.config, *branches) for branches in per_image])

    @cached_property
    def _plain(self) -> Targets:
        return Targets(self.model, self.sequence_format, [(self.full, True)])

    @cached_property
    def _guided(self) -> Targets:
        contexts = [(self.full, True)]
        if self._needs[0]:
            contexts.append(self._no_text)
        if self._no_image is not None:
            contexts.append(self._no_image)
        return Targets(self.model, self.sequence_format, contexts)


class Targets:
    """The target splits of some guidance branches, packed once for all steps."""

    def __init__(self, model: Network, sequence_format: SequenceFormat, contexts: list[tuple[Contexts, bool]]) -> None:
        """`contexts`: per branch what its targets see, and whether with the instruction."""
        self.model, self.num_branches = model, len(contexts)
        builder = SequenceBuilder(sequence_format)
        for context, with_text in contexts:
            positions = context.next_position if with_text else context.positions_without_text
            for prompt, position in zip(context.prompts, positions, strict=True):
                builder.begin_sample(position=position)
                builder.add_targets(torch.empty(3, *prompt.size, device="meta"), [0.0])
        pack = dataclasses.replace(builder.build(), images=())
        self.pack = pack.to(model.device)
        self.plan = CachedPlan([Branch(cache, text) for context, text in contexts for cache in context.caches])

    def velocity(self, latents: Tensor, t: float) -> list[Tensor]:
        """`latents` (all target tokens, P) -> one velocity of that shape per branch."""
        times = torch.full((len(self.pack.latent_splits),), t, device=latents.device)
        repeated = latents.repeat(self.num_branches, 1)
        output = self.model(self.pack, repeated, times, plan=self.plan, sampling=True)
        return list(output.velocity.float().chunk(self.num_branches))


def initial_noise(
    prompt: Prompt, model: Network, sequence_format: SequenceFormat, generator: torch.Generator | None = None
) -> Tensor:
    """(T, P) float32, drawn on the generator's device; on the CPU the model's device does not change an image."""
    rows, columns = prompt.grid(sequence_format)
    device = "cpu" if generator is None else generator.device
    return torch.randn(rows * columns, model.config.latent_token_size, generator=generator, device=device)


def check_finite(result: SampledLatents, name: str) -> None:
    """Refuses latents that are not finite: NaN would be decoded as black.

    Args:
        result: what sampling returned.
        name: name of the image in the message.

    Raises:
        UserError: a latent is NaN or infinite.
    """
    if not result.tokens.isfinite().all():
        raise UserError(
            f"{name}: sampling gave values that are not finite; are the weights intact (a diverged run?), and is the "
            "range of the precision wide enough (bfloat16 or float32; float16 ends at 65504)?"
        )


@torch.no_grad()
def decode_latents(model: Network, result: SampledLatents) -> Tensor:
    """(3, H, W) float in [-1, 1]."""
    return model.decode(result.tokens, result.grid)


def to_uint8(image: Tensor) -> Tensor:
    """(3, H, W), uint8 or in [-1, 1] -> (H, W, 3) uint8."""
    if image.dtype == torch.uint8:  # a reference or target that the autoencoder has not seen yet
        return image.permute(1, 2, 0).cpu()
    return ((image * 0.5 + 0.5) * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu()
