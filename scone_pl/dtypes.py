"""The precisions that settings may name."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""By name."""
SAMPLING_DTYPES = {**DTYPES, "float16": torch.float16}
"""Those of sampling: float16 is narrow for training, and activations of 7B may exceed its range, which is reported."""
