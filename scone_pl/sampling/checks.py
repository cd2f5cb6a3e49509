"""Checks of dtype, device and prompt length before weights are read, each error one line that says what to change."""

from __future__ import annotations

import torch

from scone_pl.dtypes import DTYPES
from scone_pl.errors import UserError
from scone_pl.sampling.context import Prompt


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """One of `DTYPES`, given itself or its name; else a `UserError`."""
    known = DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise UserError(f"dtype {dtype} is not supported; use {' or '.join(DTYPES)}")
    return known


def as_device(device: torch.device | str) -> torch.device:
    """A device that is available; else a `UserError`."""
    try:
        available = torch.device(device)
        torch.empty(0, device=available)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"device {device} can not be used ({first}); use cpu, or a GPU that torch sees") from None
    return available


def check_fits(prompt: Prompt, max_positions: int) -> None:
    """Raises `UserError` if the prompt needs more positions than the language model was trained on."""
    # An image split takes one position, whatever its size; text one per token; the target one (specification 3).
    needed = 2 * len(prompt.references) + prompt.text_length + 1
    if needed > max_positions:
        raise UserError(
            f"the prompt has {prompt.text_length} tokens and needs {needed} positions, the checkpoint has "
            f"{max_positions} (max_position_embeddings); shorten the instruction"
        )
