"""What one image needs, from configs alone: everything is checked and counted before weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scone_pl.checkpoints.folder import check_folder, read_config
from scone_pl.checkpoints.training_record import FILE, bridge_from, read_record
from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.files import parse_json
from scone_pl.messages import warn_without_effect
from scone_pl.model.config import BridgeConfig, NetworkConfig
from scone_pl.sampling.checks import as_dtype, check_fits
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.images import ImageInput, load_all
from scone_pl.sampling.memory import MemoryEstimate, Saving, TokenCount, count_prompt, estimate_memory
from scone_pl.sampling.prompts import image_size, make_prompt
from scone_pl.sampling.settings import SamplingConfig


@dataclass(frozen=True)
class GenerationPlan:
    """A prompt, ready for `SconePipeline.generate`, and what generating from it takes."""

    prompt: Prompt
    tokens: TokenCount
    memory: MemoryEstimate
    dtype: torch.dtype
    config: NetworkConfig
    """Of the model."""

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each parameter of the model, by name."""
        with torch.device("meta"):
            return {name: parameter.shape for name, parameter in self.config.build().named_parameters()}

    def report(self) -> str:
        """Sizes, tokens and memory, as lines of text."""
        height, width = self.prompt.size
        shapes = ", ".join(
            f"{vae.shape[1]} x {vae.shape[2]}" + ("" if vit is vae else f" (ViT {vit.shape[1]} x {vit.shape[2]})")
            for vae, vit in self.prompt.references
        )
        tokens = self.tokens
        return "\n".join(
            [
                f"image: {height} x {width} pixels, {tokens.target} tokens; references: {shapes or 'none'}",
                f"context: {tokens.context} tokens ({tokens.vae} VAE, {tokens.vit} ViT, {tokens.frames} frames, "
                f"{tokens.text} text)",
                f"memory in {str(self.dtype).removeprefix('torch.')}:",
                self.memory.report(),
            ]
        )


def plan_generation(
    checkpoint: str | Path,
    images: Sequence[ImageInput],
    instruction: str,
    settings: SamplingConfig,
    *,
    dtype: torch.dtype | str = torch.bfloat16,
    exif_orientation: ExifOrientation = "apply",
    negative: str | None = None,
    saving: Saving = Saving(),  # noqa: B008 (immutable)
) -> GenerationPlan:
    """Opens and resizes the references, encodes the instruction, and checks all against the checkpoint's configs.

    Args:
        checkpoint: checkpoint folder; its weights are not read.
        images: references in the order in which the instruction counts them.
        instruction: what to generate.
        settings: how.
        dtype: of weights and activations.
        exif_orientation: see `SconePipeline.from_pretrained`.
        negative: negative prompt.
        saving: how memory is saved.

    Raises:
        UserError: a setting, image or folder that does not work.
    """
    folder = check_folder(checkpoint)
    config = read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.check_embedding(config.decoder.vocab_size)
    settings.check_bridge(config.decoder.num_layers)
    sequence_format = config.sequence_format(tokenizer.special)
    size = image_size(sequence_format, settings.height, settings.width)
    packing = PackingConfig.for_inference(sequence_format, exif_orientation)
    loaded = load_all(images, exif_orientation, urls=True)
    prompt = make_prompt(loaded, instruction, size, sequence_format, tokenizer, packing, negative)
    check_fits(prompt, config.decoder.max_position_embeddings)
    kind = as_dtype(dtype)
    memory = estimate_memory(config, sequence_format, [prompt], settings, kind, saving)
    return GenerationPlan(prompt, count_prompt(prompt, sequence_format), memory, kind, config)


def bridge_setting(checkpoint: str | Path, setting: str) -> BridgeConfig | None:
    """The bridge that a text selects.

    Args:
        checkpoint: folder whose `training.json` records how it was trained.
        setting: off, trained (as recorded there), or a JSON object of `BridgeConfig` fields.

    Raises:
        UserError: none of these, or nothing is recorded.
    """
    if setting == "off":
        return None
    if setting == "trained":
        folder = check_folder(checkpoint)
        if not (folder / FILE).exists():
            raise UserError(f"{folder / FILE}: not there; give the bridge's settings as JSON instead")
        trained = read_record(folder).get("bridge")
        if not trained:
            raise UserError(
                f"{checkpoint}: was trained without a bridge; use --bridge off or give its settings as JSON"
            )
        return dataclasses.replace(bridge_from(trained, f"{folder / FILE}: bridge"), apply_mask=True)
    try:
        bridge = bridge_from(parse_json(setting, "JSON", dict), "JSON")
        warn_without_effect("--bridge", bridge.without_effect)
        return bridge
    except UserError as error:
        raise UserError(
            f"--bridge {setting:.200}: give off, trained, or JSON such as "
            f'\'{{"source_layer": 8, "first_masked_layer": 9, "last_masked_layer": 15, "threshold": 0.88}}\' ({error})'
        ) from None
