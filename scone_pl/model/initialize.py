"""Random weights, for models that start from nothing (BAGEL is never started so)."""

from __future__ import annotations

import math

import torch
from torch import nn

from scone_pl.model.config import SconeConfig
from scone_pl.model.scone import Scone


@torch.no_grad()
def random_model(config: SconeConfig, seed: int) -> Scone:
    """Builds on the CPU in float32: variance-preserving linear maps, quiet residual branches, velocity 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Scone(config)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
        # Each residual branch adds little at first, so that the depth does not blow up the stream.
        quiet = 1 / math.sqrt(2 * config.decoder.num_layers)
        for name, parameter in model.named_parameters():
            if ("o_proj" in name or "down_proj" in name) and name.endswith("weight"):
                parameter.mul_(quiet)
        nn.init.zeros_(model.llm2vae.weight)
        nn.init.zeros_(model.llm2vae.bias)
    return model
