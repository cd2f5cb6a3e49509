"""`SconePipeline`: images from a checkpoint, with the interface of a diffusers pipeline.

```python
pipe = SconePipeline.from_pretrained("weights/Scone", torch_dtype=torch.bfloat16).to("cuda")
image = pipe("Put the cat of image 1 into the room of image 2.", image=["cat.png", "room.jpg"]).images[0]
```
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import std
from tqdm.auto import tqdm

from scone_pl import deprecated
from scone_pl.checkpoints.adapters import AdapterConfig
from scone_pl.checkpoints.folder import check_folder
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.checkpoints.training_record import FILE, bridge_from, read_record
from scone_pl.data.decoding import ExifOrientation
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError, UserTypeError
from scone_pl.model.config import BridgeConfig
from scone_pl.model.network import Network
from scone_pl.model.quantized import Quantization, check_quantization
from scone_pl.ranges import check_whole
from scone_pl.sampling.arguments import (
    Generators,
    chosen_bridge,
    generators_per_image,
    images_per_prompt,
    refuse_unknown,
    texts_per_prompt,
    with_overrides,
)
from scone_pl.sampling.checks import as_device_map, as_dtype, check_fits, check_negative, check_rebalancing
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.images import ImageInput, load_all
from scone_pl.sampling.lora import LoRAAdapters
from scone_pl.sampling.offload import Offload
from scone_pl.sampling.output import OutputType, PipelineOutput, check_output_type, output_images, reference_maps
from scone_pl.sampling.placement import Placement, compile_layers
from scone_pl.sampling.prompts import image_size, make_prompt
from scone_pl.sampling.publishing import Publishing
from scone_pl.sampling.sampler import initial_noise, sample
from scone_pl.sampling.settings import SamplingConfig

StepEndCallback = Callable[["SconePipeline", int, float, dict[str, Tensor]], Any]
"""Called after each step with the pipeline, the step's index, its t (from 1 to 0), and the tensors that were asked for,
`latents` and `velocity`, each (all target tokens, values). If it returns a dict with `latents`, sampling continues from
these; `pipeline.interrupt = True` in it ends sampling."""
_CALLBACK_TENSORS = ("latents", "velocity")
_PROGRESS_OPTIONS = tuple(inspect.signature(std.tqdm.__init__).parameters)[2:]
MAX_IMAGES = 1000
"""Images of one prompt in one call."""


class SconePipeline(Placement, Publishing, LoRAAdapters):
    """Reference images and an instruction in, images out."""

    def __init__(
        self,
        model: Network,
        tokenizer: Tokenizer,
        packing: PackingConfig | None = None,
        source: Path | None = None,
        *,
        urls: bool = True,
    ) -> None:
        """Wraps a model that is in memory already; see `from_pretrained`.

        Args:
            model: in eval mode.
            tokenizer: of the model.
            packing: sizes to which reference images are resized; None = the release's in inference.
            source: checkpoint folder of the model, for its training provenance and tokenizer files.
            urls: whether reference images may be URLs; a server that passes on its users' requests says False.

        Raises:
            UserError: the tokenizer has ids that the model has no embedding for.
        """
        self.model, self.tokenizer, self.source, self.urls = model, tokenizer, source, urls
        self.sequence_format = model.config.sequence_format(tokenizer.special)
        self.packing = packing or PackingConfig.for_inference(self.sequence_format)
        self.interrupt = False
        """Set in a callback: sampling ends after the step, and what there is gets decoded."""
        self._progress_options: dict[str, Any] = {}
        self._loaded: dict[str, float] = {}
        self._fused = False
        self._offload: Offload | None = None
        if isinstance(tokenizer, Tokenizer):
            tokenizer.check_embedding(model.config.decoder.vocab_size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] = "",
        *,
        torch_dtype: torch.dtype | str = torch.float32,
        device_map: torch.device | str | int | dict[str, Any] | None = None,
        attention: Literal["split", "flex", "dense"] = "split",
        compile: bool = False,
        exif_orientation: ExifOrientation = "apply",
        urls: bool = True,
        adapters: Sequence[AdapterConfig] = (),
        quantization: Quantization | None = None,
        **others: Any,
    ) -> SconePipeline:
        """Reads a checkpoint: BAGEL's, Scone's, or one that training here wrote.

        Args:
            pretrained_model_name_or_path: folder in the published layout (`scone_pl.checkpoints.model`), or an id
                on the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION (`scone_pl.checkpoints.hub`).
            torch_dtype: of weights and activations: float32, bfloat16 as published, or float16. Latents are float32
                between steps.
            device_map: one device (cpu, cuda, cuda:1, 1), or auto = a GPU if there is one; None = cpu, see `to`.
            attention: backend of the prefill (flex: CUDA). Denoising always reads the cache by slices.
            compile: compile the decoder layers; pays off on CUDA for many images of one size, slow to start.
            exif_orientation: apply = references are rotated as their EXIF orientation says, as viewers show them;
                ignore = they stay as stored, as in the release.
            urls: see `__init__`.
            adapters: LoRA adapters that are merged into the weights as they are read; to keep them apart, see
                `load_lora_weights`.
            quantization: int8 or nf4 (`pip install bitsandbytes`) for the decoder layers' weights, each quantised as it
                is read; everything else stays in `torch_dtype`.
            others: former names of these arguments.

        Raises:
            UserError: no checkpoint, weights that do not fit, an unsupported dtype or device.
            UserTypeError: an unknown argument.
        """
        if others:
            known = [name for name in inspect.signature(cls.from_pretrained).parameters if name != "others"]
            others = deprecated.rename_arguments(others, deprecated.LOADING)
            refuse_unknown(others, known, "from_pretrained")
            others.setdefault("pretrained_model_name_or_path", pretrained_model_name_or_path)
            given: dict[str, Any] = {"attention": attention, "compile": compile, "exif_orientation": exif_orientation}
            given |= {"urls": urls, "adapters": adapters, "quantization": quantization}
            return cls.from_pretrained(**{"torch_dtype": torch_dtype, "device_map": device_map, **given, **others})
        if not os.fspath(pretrained_model_name_or_path):
            raise UserTypeError("from_pretrained() needs a checkpoint folder")
        kind, device = as_dtype(torch_dtype), as_device_map(device_map)
        check_quantization(quantization)
        if compile and quantization is not None:
            raise UserError(f"compile does not go together with quantization {quantization}; leave one out")
        folder = check_folder(pretrained_model_name_or_path)
        tokenizer = Tokenizer.from_folder(folder)
        model = from_pretrained(folder, dtype=kind, device=device, adapters=adapters, quantization=quantization)
        model.requires_grad_(False)
        model.attention = attention
        if compile:
            compile_layers(model)
        sequence_format = model.config.sequence_format(tokenizer.special)
        packing = PackingConfig.for_inference(sequence_format, exif_orientation)
        return cls(model, tokenizer, packing, folder, urls=urls)

    @property
    def _interrupt(self) -> bool:
        """`interrupt` by the name that diffusers' examples set."""
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        self.interrupt = value

    @property
    def trained_bridge(self) -> BridgeConfig | None:
        """The bridge that the checkpoint was trained with; None = none, or nothing is recorded."""
        values = None if self.source is None else read_record(self.source).get("bridge")
        return bridge_from(values, f"{self.source}/{FILE}: bridge") if values else None

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the progress bar of a call: those of tqdm, such as `disable=True` or `desc="cat"`.

        Raises:
            UserTypeError: tqdm has no such option.
        """
        refuse_unknown(options, _PROGRESS_OPTIONS, "set_progress_bar_config")
        self._progress_options = options

    def prompts(
        self,
        images: Sequence[Sequence[ImageInput]],
        prompt: Sequence[str],
        height: int | None = None,
        width: int | None = None,
        negative_prompt: Sequence[str] | None = None,
    ) -> list[Prompt]:
        """Inputs of `generate`: references resized and normalised, instructions as token ids; no forward pass.

        Args:
            images: per prompt its references.
            prompt: the instructions.
            height: see `SamplingConfig`.
            width: see `SamplingConfig`.
            negative_prompt: per prompt its negative prompt.

        Raises:
            UserError: see `__call__`.
        """
        size = image_size(self.sequence_format, height, width)
        negatives = [None] * len(prompt) if negative_prompt is None else negative_prompt
        made = [
            make_prompt(
                load_all(references, self.packing.exif_orientation, urls=self.urls),
                instruction,
                size,
                self.sequence_format,
                self.tokenizer,
                self.packing,
                negative,
            )
            for references, instruction, negative in zip(images, prompt, negatives, strict=True)
        ]
        for one in made:
            check_fits(one, self.model.config.decoder.max_position_embeddings)
        return made

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | None = None,
        settings: SamplingConfig | None = None,
        *,
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = _CALLBACK_TENSORS,
        **overrides: Any,
    ) -> Any:
        """Samples images for each prompt. The defaults are Scone's published settings.

        Args:
            prompt: the instruction, or a list of them, sampled in one batch; batching does not affect any image.
            image: references in the order in which the prompt counts them, one or a list; none = text to image. For a
                list of prompts one image for all, or a list with an image or a list of references for each. See
                `ImageInput`; they are rotated as their EXIF orientation says, see `from_pretrained`.
            settings: None = the published settings, with the seed of torch's global generator.
            images: the same as `image`.
            negative_prompt: what guidance leads away from, one or one per prompt; None = from no instruction.
            num_images_per_prompt: images of each prompt, next to each other in the output.
            generator: of the initial noise, in place of `seed`; a list = one per image, so that an image does not
                depend on those beside it. On the CPU, so that all devices draw the same.
            latents: initial noise instead: (tokens, values), or one such per image.
            output_type: see `PipelineOutput.images`.
            return_dict: False = `PipelineOutput.to_tuple()`.
            callback_on_step_end: see `StepEndCallback`.
            callback_on_step_end_tensor_inputs: the tensors that it receives.
            overrides: fields of `SamplingConfig`, such as `num_inference_steps=20`; `bridge` may also be "trained".

        Returns:
            A `PipelineOutput`, or with `return_dict=False` a tuple.

        Raises:
            UserError: anything that the caller can correct, in one line.
            UserTypeError: an unknown argument.
        """
        if images is not None and image is not None:
            raise UserError("image and images are the same argument, and both are given; leave one out")
        if prompt is None or not isinstance(prompt, str | list | tuple):
            raise UserError("prompt comes first and is a text or a list of texts: pipeline(prompt, image=...)")
        batched = not isinstance(prompt, str)
        texts = texts_per_prompt(prompt, None, "prompt")
        references = images_per_prompt(images if image is None else image, len(texts), batched=batched)
        negatives = (
            None if negative_prompt is None else texts_per_prompt(negative_prompt, len(texts), "negative_prompt")
        )
        check_whole("num_images_per_prompt", num_images_per_prompt, minimum=1, maximum=MAX_IMAGES)
        if "bridge" in overrides:
            overrides["bridge"] = chosen_bridge(overrides["bridge"], self.trained_bridge)
        if generator is not None and overrides.get("seed") is not None:
            raise UserError("generator and seed are both given; leave one out")
        settings = with_overrides(settings or SamplingConfig(seed=None), overrides, self._argument_names())
        settings.check_bridge(self.model.config.decoder.num_layers)
        check_output_type(output_type)
        prompts = self.prompts(references, texts, settings.height, settings.width, negatives)
        with tqdm(**{"total": settings.num_inference_steps, **self._progress_options}) as bar:

            def on_step(*arguments: Any) -> Any:
                bar.update()
                return None if callback_on_step_end is None else callback_on_step_end(*arguments)

            output = self.generate(
                [one for one in prompts for _ in range(num_images_per_prompt)],
                settings,
                generator=generator,
                latents=latents,
                output_type=output_type,
                callback_on_step_end=on_step,
                callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            )
        return output if return_dict else output.to_tuple()

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingConfig,
        *,
        generator: Generators = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = _CALLBACK_TENSORS,
    ) -> PipelineOutput:
        """`__call__` from prepared prompts, see `prompts`; their sizes count, not those of `settings`.

        Raises:
            UserError: see `__call__`.
        """
        settings.check_bridge(self.model.config.decoder.num_layers)
        check_output_type(output_type)
        check_negative(prompts, settings)
        check_rebalancing(prompts, settings)
        if unknown := [name for name in callback_on_step_end_tensor_inputs if name not in _CALLBACK_TENSORS]:
            raise UserError(
                f"callback_on_step_end_tensor_inputs has {unknown[0]!r:.80}; it takes {', '.join(_CALLBACK_TENSORS)}"
            )
        if generator is None and settings.seed is not None:
            generator = torch.Generator().manual_seed(settings.seed)
        noise = self._noise(prompts, generator, latents)
        self.interrupt = False

        def on_step(step: int, t: float, velocity: Tensor, x: Tensor) -> Tensor | bool | None:
            if callback_on_step_end is None:
                return None
            tensors = {"latents": x, "velocity": velocity}
            asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
            changed = _latents_of(callback_on_step_end(self, step, t, asked), x)
            return False if self.interrupt else changed

        results = sample(self.model, self.sequence_format, prompts, settings, noise, on_step)
        maps = None
        if settings.bridge is not None:
            maps = [reference_maps(prompt, result) for prompt, result in zip(prompts, results, strict=True)]
        return PipelineOutput(output_images(self.model, results, output_type), maps)

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
        generators = generators_per_image(generator, len(prompts))
        return [initial_noise(p, self.model, self.sequence_format, g) for p, g in zip(prompts, generators, strict=True)]

    def _argument_names(self) -> list[str]:
        return [name for name in inspect.signature(self.__call__).parameters if name != "overrides"]


def _latents_of(returned: object, latents: Tensor) -> Tensor | None:
    """The latents that a callback returned, if any.

    Raises:
        UserError: they have another shape.
    """
    changed = returned.get("latents") if isinstance(returned, dict) else None
    if changed is None or changed is latents:
        return None
    if not isinstance(changed, Tensor) or changed.shape != latents.shape:
        raise UserError(f"callback_on_step_end returned latents that are no tensor of shape {tuple(latents.shape)}")
    return changed.to(latents)
