"""Checks of dtype, device and prompt length before weights are read, each error one line that says what to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scone_pl.dtypes import SAMPLING_DTYPES
from scone_pl.errors import UserError
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.settings import SamplingConfig


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """One of `SAMPLING_DTYPES`, given itself or its name; else a `UserError`."""
    known = SAMPLING_DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise UserError(f"dtype {dtype!s:.80} is not supported; use {' or '.join(SAMPLING_DTYPES)}")
    return known


def as_device(device: torch.device | str | int) -> torch.device:
    """A device that is available, by name or number of a GPU; `auto` = a GPU if there is one; else a `UserError`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        available = torch.device("cuda", device) if type(device) is int else torch.device(device)
        torch.empty(0, device=available)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"device {device!s:.80} can not be used ({first}); use cpu, or a GPU that torch sees") from None
    return available


def as_device_map(device_map: object) -> torch.device:
    """The one device of a `device_map`: a device, `auto`, or {"": device}.

    Raises:
        UserError: the model would be split over several, or the device is not available.
    """
    if isinstance(device_map, dict) and list(device_map) == [""]:
        device_map = device_map[""]
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, dict) or device_map in ("balanced", "balanced_low_0", "sequential"):
        raise UserError(
            f"device_map {device_map!s:.80}: the pipeline runs on one device; give auto, cpu, cuda or cuda:1"
        )
    return as_device(device_map)  # type: ignore[arg-type] # others are refused there


def check_fits(prompt: Prompt, max_positions: int) -> None:
    """Raises `UserError` if the prompt needs more positions than the language model was trained on."""
    # An image split takes one position, whatever its size; text one per token; the target one (specification 3).
    length = max(prompt.text_length, prompt.negative.text_length)
    needed = 2 * len(prompt.references) + length + 1
    if needed > max_positions:
        raise UserError(
            f"the prompt has {length} tokens and needs {needed} positions, the checkpoint has "
            f"{max_positions} (max_position_embeddings); shorten the instruction"
        )


def check_negative(prompts: Sequence[Prompt], settings: SamplingConfig) -> None:
    """Raises `UserError` if a negative prompt would have no effect, or none that is defined."""
    if all(prompt.negative_ids is None for prompt in prompts):
        return
    if settings.guidance_scale <= 1:
        raise UserError("negative_prompt acts only with guidance; set guidance_scale above 1")
    if settings.bridge is not None and settings.bridge.drop_blocked:
        raise UserError("negative_prompt does not go together with bridge.drop_blocked; leave one out")


def check_rebalancing(prompts: Sequence[Prompt], settings: SamplingConfig) -> None:
    """Raises `UserError` if attention would be rebalanced over reference images that no prompt has."""
    if settings.attention_rebalancing is not None and not any(prompt.references for prompt in prompts):
        raise UserError("attention_rebalancing acts on reference images, but there is none; give one, or leave it out")
