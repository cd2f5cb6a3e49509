"""scone_pl: a PyTorch Lightning experiment framework for Scone (arXiv 2512.12675).

The public names are imported on first use, so that `import scone_pl` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "SconePipeline": "sampling.pipeline",
    "SamplingConfig": "sampling.settings",
    "Composition": "training.stages",
    "BridgeFormation": "training.stages",
    "BridgeGuidance": "training.stages",
    "OptimizerConfig": "training.optimizer",
    "DataProgress": "training.callbacks",
    "Previews": "training.callbacks",
    "PackedDataModule": "data.datamodule",
    "PackingConfig": "data.packing",
    "ResizeLimits": "data.transforms",
    "Source": "data.sources",
    "BridgeConfig": "model.bridge_config",
    "SconeConfig": "model.config",
    "LoRAConfig": "model.lora",
    "UserError": "errors",
}
"""Public name -> module."""

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module scone_pl has no attribute {name}; public names: {', '.join(_MODULES)}")
    value = getattr(importlib.import_module(f"scone_pl.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
