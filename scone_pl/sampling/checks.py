"""Settings of a sampling run that can be wrong, each complaint one line that says what to change."""

from __future__ import annotations

import torch

from scone_pl.dtypes import DTYPES
from scone_pl.errors import UserError
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.sampler import SamplingConfig


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """One of `DTYPES`, given itself or its name; else a `UserError`."""
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UserError(f"dtype {dtype} is not supported; use {' or '.join(DTYPES)}")
    return found


def as_device(device: torch.device | str) -> torch.device:
    """A device that is there; else a `UserError`."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"device {device} can not be used ({first}); use cpu, or a GPU that torch sees") from None
    return place


def check_sampling(config: SamplingConfig, num_layers: int) -> None:
    """Raises `UserError` for settings outside of their range, or a bridge over layers that the model lacks."""
    guidance = config.guidance
    low, high = guidance.interval
    if config.num_inference_steps < 1:
        raise UserError(f"num_inference_steps is {config.num_inference_steps}; it must be at least 1")
    if config.timestep_shift <= 0:
        raise UserError(f"timestep_shift is {config.timestep_shift}; it must be more than 0")
    if not 0 <= low <= high <= 1:
        raise UserError(f"guidance_interval is ({low}, {high}); it must be 0 <= low <= high <= 1")
    if guidance.rescale not in ("global", "channel", "text_channel"):
        raise UserError(f"guidance_rescale {guidance.rescale!r} is not one of global, channel, text_channel")
    if not 0 <= guidance.rescale_min <= 1:
        raise UserError(f"guidance_rescale_min is {guidance.rescale_min}; it must be from 0 to 1")
    if guidance.text_scale <= 1 and guidance.image_scale > 1:
        # The release's code applies no guidance at all then, the formula (spec. 7) would: ambiguous, so refused.
        raise UserError(
            f"image_guidance_scale {guidance.image_scale} acts only with text guidance; set text_guidance_scale above "
            f"1 (it is {guidance.text_scale}), or image_guidance_scale to 1"
        )
    if config.bridge is not None and config.bridge.last_masked_layer >= num_layers:
        raise UserError(
            f"bridge.last_masked_layer is {config.bridge.last_masked_layer}, but this checkpoint's last decoder layer "
            f"is {num_layers - 1}; set source_layer, first_masked_layer and last_masked_layer to layers that it has"
        )


def check_fits(prompt: Prompt, max_positions: int) -> None:
    """Raises `UserError` if the prompt needs more positions than the language model was trained on."""
    # Every image split takes one position, whatever its size; text one a token; the picture one (specification 3).
    needed = 2 * len(prompt.references) + prompt.text_length + 1
    if needed > max_positions:
        raise UserError(
            f"the prompt has {prompt.text_length} tokens and needs {needed} positions, the checkpoint has "
            f"{max_positions} (max_position_embeddings); shorten the instruction"
        )
