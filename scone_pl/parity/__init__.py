"""The verb `parity` compares this code with numbers computed by a base model's published implementation.

A parity folder is a checkpoint folder plus `expected.json` and `expected.safetensors` (such as tests/golden/parity).
All its tensors are recomputed from images and token ids, with the code of training and sampling.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Literal

import torch

from scone_pl.errors import UserError
from scone_pl.model.bases import base_of
from scone_pl.parity.bagel import ParityCase
from scone_pl.sampling.checks import as_device
from scone_pl.training.parts import count_parameters

__all__ = ["ParityCase", "parity"]


def parity(folder: Path, attention: Literal["split", "flex", "dense"] = "split", device: str = "cpu") -> int:
    """Recompute everything in a parity folder and print the largest error of each quantity.

    Args:
        folder: Checkpoint folder with expected.json and expected.safetensors.
        attention: Attention backend.
        device: cpu or cuda.
    """
    if attention == "flex" and as_device(device).type == "cpu":
        raise UserError("FlexAttention has no backward on the CPU; use --device cuda, or --attention split")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        return _report(folder, attention, device)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        # Damaged content of a parity folder must not appear as an error of the program.
        raise UserError(
            f"{folder}: expected.json does not describe a parity case ({type(error).__name__}: {error})"
        ) from error


def _report(folder: Path, attention: str, device: str) -> int:
    case = import_module(base_of(folder).parity).ParityCase(folder, attention=attention, device=device)
    parameters = sum(count_parameters(case.model).values())
    print(f"{folder}: {parameters:,} parameters, {case.references} references, attention {attention} on {device}")
    comparisons = []
    for comparison in case.compare():
        comparisons.append(comparison)
        print(comparison, flush=True)
    wrong = [c.name for c in comparisons if not c.agrees]
    print(f"{len(comparisons) - len(wrong)} of {len(comparisons)} quantities agree")
    return 1 if wrong else 0
