"""`SconePipeline`: images from a checkpoint folder, with the interface of a diffusers pipeline.

```python
pipeline = SconePipeline.from_pretrained("weights/Scone", dtype=torch.bfloat16, device="cuda")
image = pipeline(images=["cat.png", "room.jpg"], prompt="Put the cat of image 1 into the room of image 2.").images[0]
```
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scone_pl import deprecated
from scone_pl.checkpoints.model import check_folder, from_pretrained
from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.scone import Scone
from scone_pl.sampling.checks import as_device, as_dtype, check_fits
from scone_pl.sampling.images import ImageInput, load_all
from scone_pl.sampling.prompts import image_size, make_prompt
from scone_pl.sampling.sampler import (
    Prompt,
    SampledLatents,
    check_finite,
    decode_latents,
    initial_noise,
    sample,
    to_uint8,
)
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.sampling.visualize import Pixels, bridge_image

OutputType = Literal["pil", "np", "pt", "latent"]
StepEndCallback = Callable[["SconePipeline", int, float, dict[str, Tensor]], Any]
"""Called after each step with the pipeline, the step's index, its t and {"latents", "velocity"}; read-only."""
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class ReferenceMaps:
    """The bridge's maps of one reference image."""

    reference: Pixels
    """(H, W, 3) uint8, as the autoencoder saw it."""
    similarity: np.ndarray
    """(rows, columns) over its VAE tokens: mean cosine similarity to the instruction."""
    blocked: np.ndarray
    """The same grid, bool: hidden from the target."""


@dataclass(frozen=True)
class PipelineOutput:
    """Result of a call, in the order of its prompts."""

    images: list[Any]
    """`pil`: PIL images; `np`: (H, W, 3) uint8 arrays; `pt`: (3, H, W) float tensors in [-1, 1]; `latent`: (tokens,
    values) float tensors."""
    bridge: list[tuple[ReferenceMaps, ...]] | None
    """Per image the maps of each reference; None if the bridge was off."""

    def bridge_image(self, index: int = 0, *, cell: int = 256) -> Image.Image:
        """A row per reference of image `index`: the reference, blocked regions paled, the similarity as heat.

        Raises:
            UserError: the bridge was off, or the prompt has no reference.
        """
        if self.bridge is None or not self.bridge[index]:
            raise UserError("there are no maps of the bridge: it was off, or the prompt has no reference image")
        rows = [(m.reference, m.similarity, m.blocked) for m in self.bridge[index]]
        return Image.fromarray(bridge_image(rows, cell=cell))


class SconePipeline:
    """Reference images and an instruction in, images out."""

    def __init__(self, model: Scone, tokenizer: Tokenizer, packing: PackingConfig | None = None) -> None:
        """Wraps a model that is in memory already; see `from_pretrained`.

        Args:
            model: in eval mode.
            tokenizer: of the model.
            packing: sizes to which reference images are resized; None = the release's in inference.

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
            compile: compile the decoder layers; pays off on CUDA for many images of one size, slow to start.
            exif_orientation: apply = references are rotated as their EXIF orientation says, as viewers show them;
                ignore = they stay as stored, as in the release.

        Raises:
            UserError: no checkpoint folder, weights that do not fit, an unsupported dtype or device.
        """
        kind, device = as_dtype(dtype), as_device(device)
        tokenizer = Tokenizer.from_folder(check_folder(folder))
        model = from_pretrained(folder, dtype=kind, device=device).requires_grad_(False)
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
        images: Sequence[Sequence[ImageInput]],
        prompt: Sequence[str],
        height: int | None = None,
        width: int | None = None,
    ) -> list[Prompt]:
        """Inputs of `generate`: references resized and normalised, instructions as token ids; no forward pass.

        Args:
            images: per prompt its references.
            prompt: the instructions.
            height: see `SamplingConfig`.
            width: see `SamplingConfig`.

        Raises:
            UserError: see `__call__`.
        """
        size = image_size(self.sequence_format, height, width)
        made = [
            make_prompt(
                load_all(references, self.packing.exif_orientation),
                instruction,
                size,
                self.sequence_format,
                self.tokenizer,
                self.packing,
            )
            for references, instruction in zip(images, prompt, strict=True)
        ]
        for one in made:
            check_fits(one, self.model.config.decoder.max_position_embeddings)
        return made

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | None = None,
        prompt: str | Sequence[str] = "",
        settings: SamplingConfig | None = None,
        *,
        generator: Generators = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepEndCallback | None = None,
        **overrides: Any,
    ) -> PipelineOutput:
        """Samples an image for each prompt. The defaults are Scone's published settings.

        Args:
            images: references in the order in which the prompt counts them: PIL images, paths or uint8 arrays of any
                size and mode; none = text to image. For a list of prompts a list of such lists. They are rotated as
                their EXIF orientation says, see `from_pretrained`.
            prompt: the instruction, or a list of them, which are sampled side by side; that changes no image.
            settings: None = the published settings, with the seed of torch's global generator.
            generator: CPU generator of the initial noise, in place of `settings.seed`; a list = one per prompt, so
                that an image does not depend on the prompts beside it.
            latents: initial noise instead: (tokens, values), or one such per prompt.
            output_type: see `PipelineOutput.images`.
            callback_on_step_end: see `StepEndCallback`.
            overrides: fields of `SamplingConfig`, such as `num_inference_steps=20`.

        Raises:
            UserError: anything that the caller can correct, in one line.
        """
        batched = not isinstance(prompt, str)
        instructions = list(prompt) if batched else [prompt]
        references = _references_per_prompt(images, len(instructions), batched=batched)
        settings = with_overrides(settings or SamplingConfig(seed=None), overrides)
        settings.check_bridge(self.model.config.decoder.num_layers)
        _check_output_type(output_type)
        prompts = self.prompts(references, instructions, settings.height, settings.width)
        return self.generate(
            prompts,
            settings,
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingConfig,
        *,
        generator: Generators = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepEndCallback | None = None,
    ) -> PipelineOutput:
        """`__call__` from prepared prompts, see `prompts`; their sizes count, not those of `settings`.

        Raises:
            UserError: see `__call__`.
        """
        settings.check_bridge(self.model.config.decoder.num_layers)
        _check_output_type(output_type)
        if generator is None and settings.seed is not None:
            generator = torch.Generator().manual_seed(settings.seed)
        noise = self._noise(prompts, generator, latents)

        def on_step(step: int, t: float, velocity: Tensor, x: Tensor) -> None:
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, t, {"latents": x, "velocity": velocity})

        results = sample(self.model, self.sequence_format, prompts, settings, noise, on_step)
        maps = None
        if settings.bridge is not None:
            maps = [reference_maps(prompt, result) for prompt, result in zip(prompts, results, strict=True)]
        return PipelineOutput([self._output(result, output_type) for result in results], maps)

    def _noise(
        self, prompts: Sequence[Prompt], generator: Generators, latents: Tensor | Sequence[Tensor] | None
    ) -> list[Tensor]:
        if latents is not None:
            given = [latents] if isinstance(latents, Tensor) and latents.ndim == 2 else list(latents)
            rows, columns = prompts[0].grid(self.sequence_format)
            shape = (rows * columns, self.model.config.latent_token_size)
            if len(given) != len(prompts) or any(tuple(x.shape) != shape for x in given):
                raise UserError(f"latents must be {len(prompts)} tensor(s) of shape {shape} for images of this size")
            return [x.float() for x in given]
        generators = [generator] * len(prompts) if isinstance(generator, torch.Generator | None) else list(generator)
        if len(generators) != len(prompts):
            raise UserError(f"there are {len(generators)} generators for {len(prompts)} prompts; give one each, or one")
        if any(g is not None and g.device.type != "cpu" for g in generators):
            raise UserError("noise is drawn on the CPU so that devices agree; give torch.Generator() without a device")
        return [initial_noise(p, self.model, self.sequence_format, g) for p, g in zip(prompts, generators, strict=True)]

    def _output(self, result: SampledLatents, output_type: OutputType) -> Any:
        if output_type == "latent":
            return result.tokens
        check_finite(result, "image")
        decoded = decode_latents(self.model, result)
        if output_type == "pt":
            return decoded
        pixels = to_uint8(decoded).numpy()
        return pixels if output_type == "np" else Image.fromarray(pixels)


def with_overrides(settings: SamplingConfig, overrides: dict[str, Any]) -> SamplingConfig:
    """`settings` with some fields replaced; deprecated names of fields are accepted with a warning.

    Raises:
        UserError: an unknown field, or a value out of range.
    """
    overrides = deprecated.rename_arguments(overrides)
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    for name in overrides:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise UserError(f"there is no setting {name}; {f'did you mean {close[0]}?' if close else ', '.join(names)}")
    return dataclasses.replace(settings, **overrides)


def compile_layers(model: Scone) -> None:
    """Compiles every decoder layer in place; attention over the cache stays eager (see `CachedPlan`)."""
    # Layers differ by their index; without this each would be compiled anew, up to dynamo's limit of 8.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for layer in model.language_model.model.layers:
        layer.compile(dynamic=True)


def reference_maps(prompt: Prompt, result: SampledLatents) -> tuple[ReferenceMaps, ...]:
    """The bridge's maps of each reference of a prompt."""
    return tuple(
        ReferenceMaps(to_uint8(vae).numpy(), similarity.float().cpu().numpy(), blocked.cpu().numpy())
        for (vae, _), similarity, blocked in zip(prompt.references, result.similarity, result.blocked, strict=True)
    )


def _check_output_type(output_type: str) -> None:
    if output_type not in ("pil", "np", "pt", "latent"):
        raise UserError(f"output_type {output_type!r} is not one of pil, np, pt, latent")


def _references_per_prompt(images: Any, num_prompts: int, *, batched: bool) -> list[list[ImageInput]]:
    """The `images` argument as one list per prompt."""
    if images is None:
        return [[] for _ in range(num_prompts)]
    if not batched:
        return [list(images)] if isinstance(images, list | tuple) else [[images]]
    if not isinstance(images, list | tuple) or not all(isinstance(i, list | tuple) for i in images):
        raise UserError("for a list of prompts `images` must be a list of lists, one per prompt")
    if len(images) != num_prompts:
        raise UserError(f"there are {len(images)} lists of images for {num_prompts} prompts; give one each")
    return [list(i) for i in images]
