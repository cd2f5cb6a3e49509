"""Every setting of sampling, once: command line, pipeline, previews, `predict` and `evaluate` share it.

Names are diffusers' where it has one; the release's names are given beside them. The defaults are Scone's published
settings (docs/specification.md 7, docs/benchmarks.md 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.ranges import check_number, check_whole

Rescale = Literal["global", "channel", "text_channel", "none"]
MAX_SIDE = 2**20
"""Pixels; no position table is that large."""
MAX_STEPS, MAX_SHIFT, MAX_SCALE = 10_000, 1e4, 1e4
"""Beyond these, float32 holds no distinct times or finite velocities."""


@dataclass(frozen=True, kw_only=True)
class StepCacheConfig:
    """Which steps are computed, and how the velocity of the others is extrapolated (TaylorSeer's idea)."""

    interval: int = 2
    """One step in `interval` is computed; 1 = all. The first and the last always are."""
    order: int = 1
    """Degree of the polynomial in t: 0 = repeat the last velocity, 1 = straight line, 2 = parabola."""

    def __post_init__(self) -> None:
        check_whole("step_cache.interval", self.interval, minimum=1)
        check_whole("step_cache.order", self.order)


@dataclass(frozen=True, kw_only=True)
class AttentionRebalancingConfig:
    """Dynamic attention rebalancing (MICON-Bench, arXiv 2602.19497), see `rebalancing.py`; the defaults are its own."""

    strength: float = 0.15
    """Keys of reference tokens that receive much attention are multiplied by 1 + strength, those that receive little by
    1 - strength (paper: gamma)."""
    high: float = 0.7
    """Much is at least this, where 0 is the least attended reference token of a layer, 1 the most (paper: tau_high)."""
    low: float = 0.3
    """Little is at most this (paper: tau_low)."""
    num_queries: int = 64
    """How many tokens of the target, evenly spaced, are asked what they attend to (paper: m)."""

    def __post_init__(self) -> None:
        check_number("attention_rebalancing.strength", self.strength, minimum=0, maximum=1)
        check_number("attention_rebalancing.low", self.low, minimum=0, maximum=1)
        check_number("attention_rebalancing.high", self.high, minimum=0, maximum=1)
        check_whole("attention_rebalancing.num_queries", self.num_queries, minimum=1)
        if self.low >= self.high:
            raise UserError(
                f"attention_rebalancing.low is {self.low}; it must be less than attention_rebalancing.high, {self.high}"
            )


Preset = Literal["published", "fast"]
PRESETS: dict[str, tuple[int, StepCacheConfig]] = {
    "published": (1, StepCacheConfig(interval=1)),
    "fast": (1, StepCacheConfig(interval=3, order=1)),
}
"""`unconditional_batch_skip_range` and `step_cache` of each preset; see experiments/studies/sampling.yaml."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are sampled."""

    num_inference_steps: int = 49
    """Euler steps. The release's `num_timesteps=50` counts time points and is 49 here."""
    guidance_scale: float = 4.0
    """Weight of the instruction (release: `cfg_text_scale`); 1 = no guidance."""
    image_guidance_scale: float = 2.0
    """Weight of the reference images on top of it (release: `cfg_img_scale`); 1 = none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts while low < t <= high; t runs from 1 (noise) to 0 (release: `cfg_interval`)."""
    guidance_rescale: Rescale = "text_channel"
    """Keeps the guided velocity no longer than the unguided one: global = over the whole image, channel = per token,
    text_channel = per token, after text guidance only, none = it may be longer (release: `cfg_renorm_type`)."""
    guidance_rescale_min: float = 0.0
    """Smallest factor that rescaling applies (release: `cfg_renorm_min`)."""
    timestep_shift: float = 3.0
    """t -> shift t / (1 + (shift - 1) t); over 1 spends more steps near noise."""
    height: int | None = None
    """Height of the image in pixels; null = 1024, or the largest that the checkpoint's position table holds."""
    width: int | None = None
    """Width of the image in pixels; null = 1024, or the largest that the checkpoint's position table holds."""
    seed: int | None = 1234
    """Seed of the initial noise; null = torch's global generator."""
    bridge: BridgeConfig | None = None
    """Hide reference tokens from the target by the understanding bridge; null = off, as the release samples."""
    preset: Preset = "published"
    """Defaults of step_cache and unconditional_batch_skip_range: published = compute every step, fast = the same scores
    in less than half the time (docs/performance.md)."""
    unconditional_batch_skip_range: int | None = None
    """Compute the unconditional branches of guidance in every n-th guided step, and reuse their difference from the
    conditional one in between. 1 = in every step; null = as in the preset."""
    step_cache: StepCacheConfig | None = None
    """Compute only some of the steps and extrapolate the others (interval 1 = compute all); null = as the preset
    says."""
    attention_rebalancing: AttentionRebalancingConfig | None = None
    """Sharpen the target's attention to reference tokens, a training-free baseline for the bridge; null = off."""

    def __post_init__(self) -> None:
        for name, kind in (("step_cache", StepCacheConfig), ("attention_rebalancing", AttentionRebalancingConfig)):
            object.__setattr__(self, name, _nested(name, getattr(self, name), kind))
        check_whole("num_inference_steps", self.num_inference_steps, minimum=1, maximum=MAX_STEPS)
        check_number("guidance_scale", self.guidance_scale, minimum=0, maximum=MAX_SCALE)
        check_number("image_guidance_scale", self.image_guidance_scale, minimum=0, maximum=MAX_SCALE)
        check_number("guidance_rescale_min", self.guidance_rescale_min, minimum=0, maximum=1)
        check_number("timestep_shift", self.timestep_shift, above=0, maximum=MAX_SHIFT)
        if self.guidance_rescale not in get_args(Rescale):
            raise UserError(
                f"guidance_rescale is {self.guidance_rescale!r:.80}; it must be one of {', '.join(get_args(Rescale))}"
            )
        object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), minimum=1, maximum=MAX_SIDE)
        if self.seed is not None:
            check_whole("seed", self.seed)
        if self.preset not in PRESETS:
            raise UserError(f"preset is {self.preset!r:.80}; it must be one of {', '.join(PRESETS)}")
        if self.unconditional_batch_skip_range is not None:
            check_whole("unconditional_batch_skip_range", self.unconditional_batch_skip_range, minimum=1)
        if self.guidance_scale <= 1 < (self.unconditional_batch_skip_range or 1):
            raise UserError(
                f"unconditional_batch_skip_range {self.unconditional_batch_skip_range} acts only with guidance; set "
                f"guidance_scale above 1 (it is {self.guidance_scale}), or leave it out"
            )
        if self.guidance_scale <= 1 < self.image_guidance_scale:
            # The release's code applies no guidance at all then, the formula (specification 7) would: refused.
            raise UserError(
                f"image_guidance_scale {self.image_guidance_scale} acts only with text guidance; set guidance_scale "
                f"above 1 (it is {self.guidance_scale}), or image_guidance_scale to 1"
            )
        if self.attention_rebalancing is not None and self.bridge is not None:
            raise UserError(
                "attention_rebalancing and bridge both steer what a target sees of references; leave one of them out"
            )

    @property
    def passes(self) -> tuple[int, StepCacheConfig]:
        """`unconditional_batch_skip_range` and `step_cache`, by the preset where they are None."""
        skip_range, cache = PRESETS[self.preset]
        return self.unconditional_batch_skip_range or skip_range, self.step_cache or cache

    @property
    def needs_image_branch(self) -> bool:
        """Whether the branch without reference images is computed where guidance acts."""
        return self.image_guidance_scale > 1

    def check_bridge(self, num_layers: int, *, samples: bool = False) -> None:
        """Checks the bridge before anything is loaded.

        Args:
            num_layers: of the decoder.
            samples: whether prompts come of samples, which may have boxes and names.

        Raises:
            UserError: it masks a layer that the decoder lacks, or needs what only samples have.
        """
        if self.bridge is not None and self.bridge.oracle and not samples:
            raise UserError("bridge.oracle needs samples with `candidates`, which prompts do not have; leave it out")
        if self.bridge is not None and self.bridge.pooling == "names" and not samples:
            raise UserError("bridge.pooling names needs samples whose metadata has `names`; prompts have none: use max")
        if self.bridge is not None and self.bridge.last_masked_layer >= num_layers:
            raise UserError(
                f"bridge.last_masked_layer is {self.bridge.last_masked_layer}, but this checkpoint's last decoder "
                f"layer is {num_layers - 1}; set source_layer, first_masked_layer and last_masked_layer to layers that "
                "it has"
            )


def _nested(name: str, value: Any, kind: type) -> Any:
    """`value`, or the `kind` that a mapping of its fields describes."""
    if value is None or isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {value!r:.80}; it must be null or a mapping of {kind.__name__}'s fields")
    known = {field.name for field in fields(kind)}
    if unknown := value.keys() - known:
        raise UserError(f"{name} has no {', '.join(sorted(unknown))}; choose from {', '.join(sorted(known))}")
    return kind(**value)


def _interval(value: Any) -> tuple[float, float]:
    try:
        low, high = tuple(value)
        check_number("guidance_interval[0]", low, minimum=0, maximum=1)
        check_number("guidance_interval[1]", high, minimum=low, maximum=1)
    except (TypeError, ValueError):
        raise UserError(f"guidance_interval is {value!r:.80}; it must be two numbers, 0 <= low <= high <= 1") from None
    return low, high
