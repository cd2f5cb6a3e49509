"""What the page starts with, from the model that it shows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from scone_pl.app.scenes import Scene, mini_scenes, scenes_of
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.checks import as_device, as_dtype
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.prompts import image_size
from scone_pl.sampling.settings import SamplingConfig

_MINI_SIDE = 16
"""Pixels a side of the mini-world's images."""
_MINI_SAMPLING = SamplingConfig(
    num_inference_steps=12, timestep_shift=1.0, guidance_scale=1.0, image_guidance_scale=1.0
)
"""As experiments/mini samples."""


@dataclass(frozen=True)
class PageSettings:
    """What the page starts with."""

    title: str
    sampling: SamplingConfig
    bridge: BridgeConfig
    scenes: list[Scene]
    previews: Path | None = None


def open_model(checkpoint: str | Path, device: str, dtype: str | None) -> SconePipeline:
    """The model; references of the page are never URLs.

    Raises:
        UserError: no such checkpoint, device or dtype.
    """
    chosen = as_device(device)
    kind = as_dtype(dtype or ("bfloat16" if chosen.type == "cuda" else "float32"))
    return SconePipeline.from_pretrained(checkpoint, torch_dtype=kind, device_map=chosen, urls=False)


def page_settings(pipeline: SconePipeline, examples: str | None, folder: Path) -> PageSettings:
    """Settings and examples; `folder` receives the images of the examples.

    Raises:
        UserError: `examples` is no data set with something to show.
    """
    config = pipeline.model.config
    is_mini = image_size(pipeline.sequence_format) == (_MINI_SIDE, _MINI_SIDE)
    scenes = []
    if examples is not None or is_mini:
        images = folder / "examples"
        images.mkdir(parents=True)
        scenes = mini_scenes(images) if examples is None else scenes_of(examples, images)
    trained = pipeline.trained_bridge
    bridge = default_bridge(config.decoder.num_layers) if trained is None else trained
    size = " x ".join(map(str, image_size(pipeline.sequence_format)))
    said = "as it was trained with" if trained else "no bridge is recorded for it, so these settings are a start"
    if bridge.adaptive_threshold:
        said += f", but for adaptive_threshold {bridge.adaptive_threshold}: the slider's threshold replaces it"
    name = pipeline.source.resolve().name if pipeline.source else "model"
    title = f"`{name}`: {config.decoder.num_layers} layers, images of {size} pixels; bridge: {said}."
    sampling = _MINI_SAMPLING if is_mini else SamplingConfig()
    return PageSettings(title, sampling, dataclasses.replace(bridge, apply_mask=True), scenes)


def default_bridge(num_layers: int) -> BridgeConfig:
    """The paper's bridge where the decoder has its layers, else the same in proportion."""
    published = BridgeConfig()
    if published.last_masked_layer < num_layers:
        return published
    source = min(max(0, num_layers * published.source_layer // 28), num_layers - 2)
    return BridgeConfig(
        source_layer=source, first_masked_layer=source + 1, last_masked_layer=num_layers - 1, threshold=0.0
    )
