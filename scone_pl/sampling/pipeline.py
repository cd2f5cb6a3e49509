"""`SconePipeline`: pictures from a checkpoint folder, in the form that people know from diffusers.

pipeline = SconePipeline.from_pretrained("weights/Scone", dtype=torch.bfloat16, device="cuda")
picture = pipeline(images=["cat.png", "room.jpg"], prompt="Put the cat of image 1 into the room of image 2.").images[0]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scone_pl.checkpoints.model import check_folder, from_pretrained
from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.model.scone import Scone
from scone_pl.sampling.checks import as_device, as_dtype, check_fits, check_sampling
from scone_pl.sampling.guidance import GuidanceConfig, Rescale
from scone_pl.sampling.images import Picturelike, load_all
from scone_pl.sampling.pictures import Picture, bridge_picture
from scone_pl.sampling.prompts import make_prompt, picture_size
from scone_pl.sampling.sampler import (
    Prompt,
    SampledLatents,
    SamplingConfig,
    check_finite,
    decode_latents,
    initial_noise,
    sample,
    to_uint8,
)
from scone_pl.sampling.step_cache import StepCacheConfig

OutputType = Literal["pil", "np", "pt", "latent"]
StepEndCallback = Callable[["SconePipeline", int, float, dict[str, Tensor]], Any]
"""Called after each step with the pipeline, its number, its t and {"latents", "velocity"}; only to look at."""


@dataclass(frozen=True)
class ReferenceMaps:
    """What the bridge found in one reference image."""

    reference: Picture
    """(H, W, 3) uint8, as the autoencoder saw it."""
    similarity: np.ndarray
    """(rows, columns) over its VAE tokens: mean cosine to the instruction."""
    blocked: np.ndarray
    """The same grid, bool: hidden from the picture."""


@dataclass(frozen=True)
class PipelineOutput:
    """What a call gives, in the order of its prompts."""

    images: list[Any]
    """`pil`: PIL images; `np`: (H, W, 3) uint8 arrays; `pt`: (3, H, W) float tensors in [-1, 1]; `latent`: (tokens,
    values) float tensors."""
    bridge: list[tuple[ReferenceMaps, ...]] | None
    """Per picture what the bridge did to each reference; None if it was off."""

    def bridge_picture(self, number: int = 0, *, cell: int = 256) -> Image.Image:
        """Each reference of picture `number` as a row: as it is, blocked regions pale, the similarity as heat.

        Raises:
            UserError: the bridge was off, or the picture has no reference.
        """
        if self.bridge is None or not self.bridge[number]:
            raise UserError("there is no picture of the bridge: it was off, or the prompt has no reference image")
        rows = [(m.reference, m.similarity, m.blocked) for m in self.bridge[number]]
        return Image.fromarray(bridge_picture(rows, cell=cell))


class SconePipeline:
    """References and instruction in, pictures out."""

    def __init__(self, model: Scone, tokenizer: Tokenizer, packing: PackingConfig | None = None) -> None:
        """Wraps a model that is already there; see `from_pretrained`.

        Args:
            model: in eval mode.
            tokenizer: its own.
            packing: sizes to which reference images are brought; None = the release's in inference.

        Raises:
            UserError: the tokenizer has ids that the model has no embedding for.
        """
        self.model, self.tokenizer = model, tokenizer
        self.sequence_format = model.config.sequence_format(tokenizer.special)
        self.packing = packing or PackingConfig.for_inference(self.sequence_format)
        if isinstance(tokenizer, Tokenizer):
            tokenizer.check_embedding(model.config.decoder.vocab_size)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
        attention: Literal["split", "flex", "dense"] = "split",
        compile: bool = False,
        exif_orientation: ExifOrientation = "apply",
    ) -> SconePipeline:
        """Reads a checkpoint folder: BAGEL's, Scone's, or one that training here wrote.

        Args:
            folder: published layout (`scone_pl.checkpoints.model`).
            dtype: of weights and activations: float32, or bfloat16 as published. Latents are float32 between steps.
            device: cpu, cuda, cuda:1, ...
            attention: backend of the prefill (flex: CUDA). Denoising always reads the cache by slices.
            compile: compile the decoder layers; pays off on CUDA for many pictures of one size, slow to start.
            exif_orientation: apply = references are turned as their EXIF orientation says, as viewers show them;
                ignore = they stay as they are stored, as in the release.

        Raises:
            UserError: no checkpoint folder, weights that do not fit, a wrong dtype or device.
        """
        kind, place = as_dtype(dtype), as_device(device)
        tokenizer = Tokenizer.from_folder(check_folder(folder))
        model = from_pretrained(folder, dtype=kind, device=place).requires_grad_(False)
        model.attention = attention
        if compile:
            compile_layers(model)
        sequence_format = model.config.sequence_format(tokenizer.special)
        return cls(model, tokenizer, PackingConfig.for_inference(sequence_format, exif_orientation))

    @property
    def device(self) -> torch.device:
        return self.model.vae2llm.weight.device

    def prompts(
        self,
        images: Sequence[Sequence[Picturelike]],
        prompt: Sequence[str],
        height: int | None = None,
        width: int | None = None,
    ) -> list[Prompt]:
        """What `__call__` samples from: references resized and normalised, instructions as ids; nothing is run.

        Args:
            images: per prompt its references.
            prompt: the instructions.
            height: see `__call__`.
            width: see `__call__`.

        Raises:
            UserError: see `__call__`.
        """
        size = picture_size(self.sequence_format, height, width)
        made = [
            make_prompt(
                load_all(references, self.packing.exif_orientation),
                words,
                size,
                self.sequence_format,
                self.tokenizer,
                self.packing,
            )
            for references, words in zip(images, prompt, strict=True)
        ]
        for one in made:
            check_fits(one, self.model.config.decoder.max_position_embeddings)
        return made

    def __call__(
        self,
        images: Picturelike | Sequence[Picturelike] | Sequence[Sequence[Picturelike]] | None = None,
        prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 49,
        text_guidance_scale: float = 4.0,
        image_guidance_scale: float = 2.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: Rescale = "text_channel",
        guidance_rescale_min: float = 0.0,
        timestep_shift: float = 3.0,
        bridge: BridgeConfig | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepEndCallback | None = None,
        step_cache: StepCacheConfig | None = None,
    ) -> PipelineOutput:
        """Draws a picture for each prompt. The defaults are Scone's published settings.

        Args:
            images: references in the order in which the prompt counts them: PIL images, paths or uint8 arrays of any
                size and mode; none = text to image. For a list of prompts a list of such lists. They are turned as
                their EXIF orientation says, see `from_pretrained`.
            prompt: the instruction, or a list of them: these are drawn side by side, which changes no picture.
            height: of the picture in pixels, a multiple of the latent stride (16); None = 1024, or the largest that
                the checkpoint's position table holds.
            width: likewise.
            num_inference_steps: Euler steps. The release counts time points: its `num_timesteps=50` is 49 here.
            text_guidance_scale: weight of the instruction; 1 = no guidance.
            image_guidance_scale: weight of the references on top of it; 1 = none.
            guidance_interval: guidance acts while low < t <= high; t runs from 1 (noise) to 0.
            guidance_rescale: what keeps the guided velocity from growing, see `GuidanceConfig`.
            guidance_rescale_min: smallest factor of it.
            timestep_shift: over 1 spends more steps near noise.
            bridge: hide what the understanding bridge finds irrelevant; None = off, as the release samples.
            generator: CPU generator of the initial noise; a list = one a prompt, so that a picture does not depend on
                the prompts beside it. None = torch's global one.
            latents: initial noise instead: (tokens, values), or one such a prompt.
            output_type: see `PipelineOutput.images`.
            callback_on_step_end: see `StepEndCallback`.
            step_cache: compute only some steps, extrapolate the others.

        Raises:
            UserError: anything that the caller can put right, in one line.
        """
        many = not isinstance(prompt, str)
        words = list(prompt) if many else [prompt]
        references = _references_of(images, len(words), many=many)
        guidance = GuidanceConfig(
            text_scale=text_guidance_scale,
            image_scale=image_guidance_scale,
            interval=tuple(guidance_interval),  # type: ignore[arg-type]
            rescale=guidance_rescale,
            rescale_min=guidance_rescale_min,
        )
        config = SamplingConfig(
            num_inference_steps=num_inference_steps,
            timestep_shift=timestep_shift,
            guidance=guidance,
            bridge=bridge,
            step_cache=step_cache,
        )
        check_sampling(config, self.model.config.decoder.num_layers)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise UserError(f"output_type {output_type!r} is not one of pil, np, pt, latent")
        prompts = self.prompts(references, words, height, width)
        noise = self._noise(prompts, generator, latents)

        def on_step(step: int, t: float, velocity: Tensor, x: Tensor) -> None:
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, t, {"latents": x, "velocity": velocity})

        found = sample(self.model, self.sequence_format, prompts, config, noise, on_step)
        maps = None if bridge is None else [reference_maps(p, f) for p, f in zip(prompts, found, strict=True)]
        return PipelineOutput([self._output(f, output_type) for f in found], maps)

    def _noise(
        self,
        prompts: list[Prompt],
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Tensor | Sequence[Tensor] | None,
    ) -> list[Tensor]:
        if latents is not None:
            given = [latents] if isinstance(latents, Tensor) and latents.ndim == 2 else list(latents)
            rows, columns = prompts[0].grid(self.sequence_format)
            shape = (rows * columns, self.model.config.latent_token_size)
            if len(given) != len(prompts) or any(tuple(x.shape) != shape for x in given):
                raise UserError(f"latents must be {len(prompts)} tensor(s) of shape {shape} for pictures of this size")
            return [x.float() for x in given]
        generators = [generator] * len(prompts) if isinstance(generator, torch.Generator | None) else list(generator)
        if len(generators) != len(prompts):
            raise UserError(f"there are {len(generators)} generators for {len(prompts)} prompts; give one each, or one")
        if any(g is not None and g.device.type != "cpu" for g in generators):
            raise UserError("noise is drawn on the CPU so that devices agree; give torch.Generator() without a device")
        return [initial_noise(p, self.model, self.sequence_format, g) for p, g in zip(prompts, generators, strict=True)]

    def _output(self, found: SampledLatents, output_type: OutputType) -> Any:
        if output_type == "latent":
            return found.tokens
        check_finite(found, "image")
        decoded = decode_latents(self.model, found)
        if output_type == "pt":
            return decoded
        pixels = to_uint8(decoded).numpy()
        return pixels if output_type == "np" else Image.fromarray(pixels)


def compile_layers(model: Scone) -> None:
    """Compiles every decoder layer in place; attention over the cache stays out of it (see `CachedPlan`)."""
    # Layers differ by their number; without this each would be compiled anew, up to dynamo's limit of 8.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for layer in model.language_model.model.layers:
        layer.compile(dynamic=True)


def reference_maps(prompt: Prompt, found: SampledLatents) -> tuple[ReferenceMaps, ...]:
    """What the bridge did to each reference of a prompt."""
    return tuple(
        ReferenceMaps(to_uint8(vae).numpy(), similarity.float().cpu().numpy(), blocked.cpu().numpy())
        for (vae, _), similarity, blocked in zip(prompt.references, found.similarity, found.blocked, strict=True)
    )


def _references_of(images: Any, num_prompts: int, *, many: bool) -> list[list[Picturelike]]:
    """The `images` argument as one list a prompt."""
    if images is None:
        return [[] for _ in range(num_prompts)]
    if not many:
        return [list(images)] if isinstance(images, list | tuple) else [[images]]
    if not isinstance(images, list | tuple) or not all(isinstance(i, list | tuple) for i in images):
        raise UserError("for a list of prompts `images` must be a list of lists, one a prompt")
    if len(images) != num_prompts:
        raise UserError(f"there are {len(images)} lists of images for {num_prompts} prompts; give one each")
    return [list(i) for i in images]
