"""Arguments of the pipeline in the forms that diffusers accepts, as one value for each image or each prompt."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scone_pl import deprecated
from scone_pl.checkpoints.training_record import bridge_from
from scone_pl.errors import UserError, UserTypeError
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.images import ImageInput
from scone_pl.sampling.settings import SamplingConfig

Generators = torch.Generator | Sequence[torch.Generator] | None
NOT_SUPPORTED = {
    "strength": "references are conditions, sampling always starts from noise",
    "eta": "the sampler is Euler's method on a rectified flow, which has no noise to add",
    "timesteps": "set num_inference_steps and timestep_shift",
    "sigmas": "set num_inference_steps and timestep_shift",
    "true_cfg_scale": "the weight of the instruction is guidance_scale",
    "mask_image": "there is no inpainting; describe the change in the prompt",
    "prompt_embeds": "instructions pass through the decoder together with the references; give prompt",
    "negative_prompt_embeds": "give negative_prompt",
    "ip_adapter_image": "give reference images as image",
    "cross_attention_kwargs": "set the scale of a LoRA with set_adapters",
    "joint_attention_kwargs": "set the scale of a LoRA with set_adapters",
    "attention_kwargs": "set the scale of a LoRA with set_adapters",
    "clip_skip": "there is no CLIP text encoder",
    "max_sequence_length": "the instruction is not truncated",
    "callback": "it is callback_on_step_end",
    "callback_steps": "callback_on_step_end is called after every step",
}
"""Arguments of diffusers' pipelines that have no counterpart, and what to do instead."""


def refuse_unknown(given: Mapping[str, object], known: Sequence[str], where: str) -> None:
    """Raises `UserTypeError` for a keyword argument that is none of `known`.

    Args:
        given: the arguments.
        known: names that are accepted.
        where: name of the function in the message.
    """
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        advice = NOT_SUPPORTED.get(name) or (f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}")
        raise UserTypeError(f"{where}() has no argument {name}; {advice}")


def with_overrides(settings: SamplingConfig, overrides: Mapping[str, Any], known: Sequence[str] = ()) -> SamplingConfig:
    """`settings` with some fields replaced; deprecated names of fields are accepted with a warning.

    `guidance_scale` of 1 or less turns guidance off, that by the references too unless `image_guidance_scale` is given.

    Args:
        settings: what holds for other fields.
        overrides: field -> value.
        known: arguments of the caller itself, which an unknown name may be close to.

    Raises:
        UserTypeError: an unknown field.
        UserError: a value out of range.
    """
    overrides = deprecated.rename_arguments(overrides)
    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    refuse_unknown(overrides, [*names, *known], "pipeline")
    scale = overrides.get("guidance_scale")
    if isinstance(scale, int | float) and scale <= 1:
        overrides.setdefault("image_guidance_scale", 1.0)
    return dataclasses.replace(settings, **overrides)


def chosen_bridge(bridge: object, trained: BridgeConfig | None) -> BridgeConfig | None:
    """The bridge that an argument selects.

    Args:
        bridge: None = off, "trained", a `BridgeConfig`, or a mapping of its fields.
        trained: the bridge that the checkpoint was trained with, if that is recorded.

    Raises:
        UserError: none of these, or "trained" although nothing is recorded.
    """
    if bridge is None or isinstance(bridge, BridgeConfig):
        return bridge
    if isinstance(bridge, Mapping):
        return bridge_from(bridge, "bridge")
    if bridge != "trained":
        raise UserError(f'bridge is {bridge!r:.80}; it must be "trained", None (off) or a BridgeConfig')
    if trained is None:
        raise UserError('bridge="trained": the checkpoint does not record one; give a BridgeConfig')
    return dataclasses.replace(trained, apply_mask=True)


def texts_per_prompt(text: object, num_prompts: int | None, name: str) -> list[Any]:
    """A text or a list of texts as a list.

    Args:
        text: the argument.
        num_prompts: required length, to which a single text is repeated; None = any but 0.
        name: of the argument.

    Raises:
        UserError: no text, or another number of them.
    """
    if isinstance(text, str):
        return [text] * (num_prompts or 1)
    texts = list(text) if isinstance(text, list | tuple) else []
    if not texts or not all(isinstance(one, str) for one in texts):
        raise UserError(f"{name} must be a text or a list of texts, not {_described(text)}")
    if num_prompts is not None and len(texts) != num_prompts:
        raise UserError(f"there are {len(texts)} texts of {name} for {num_prompts} prompts; give one each, or one text")
    return texts


def images_per_prompt(image: Any, num_prompts: int, *, batched: bool) -> list[list[ImageInput]]:
    """Reference images as a list per prompt.

    Args:
        image: for one prompt an image or the list of its references; for a list of prompts one image for all, or a list
            with an image or a list of references for each. A 4-D array or tensor counts as a list.
        num_prompts: number of prompts.
        batched: whether they came as a list.

    Raises:
        UserError: another number of images than of prompts.
    """
    if image is None:
        return [[] for _ in range(num_prompts)]
    if isinstance(image, np.ndarray | Tensor) and image.ndim == 4:
        image = list(image)
    if not isinstance(image, list | tuple):
        return [[image] for _ in range(num_prompts)]
    if not batched:
        nested = len(image) == 1 and isinstance(image[0], list | tuple)
        return [list(image[0] if nested else image)]
    if len(image) != num_prompts:
        raise UserError(
            f"there are {len(image)} entries of image for {num_prompts} prompts; give one each: an image, or a list of "
            "references"
        )
    return [list(one) if isinstance(one, list | tuple) else [] if one is None else [one] for one in image]


def generators_per_image(generator: Generators, num_images: int) -> list[torch.Generator | None]:
    """A generator for each image; one that is given alone serves all.

    Raises:
        UserError: another number of them, or not generators.
    """
    generators: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator] * num_images
    if any(not isinstance(g, torch.Generator | None) for g in generators):
        raise UserError("generator must be a torch.Generator, or a list with one per image; for a number use seed")
    if len(generators) != num_images:
        raise UserError(f"there are {len(generators)} generators for {num_images} images; give one each, or one")
    return generators


def _described(value: object) -> str:
    return "an empty list" if value in ([], ()) else f"a {type(value).__name__}"
