"""Random weights, for models that are trained from scratch (mini models; BAGEL comes with weights).

Beyond variance-preserving maps, three priors that training would otherwise learn in its first hundreds of steps:
features of t with a bend inside [0, 1], a velocity that starts as half the noisy latent, and a generation expert whose
attention starts as "attend to similar tokens and subtract them" (mimetic initialisation, arXiv 2305.09828): what target
tokens must do with the clean latents of a reference, since the velocity is the noisy latent minus the clean one. In a
dense decoder the only attention is initialised so. A base whose references are tokens of the understanding expert
and whose head predicts the image is initialised as "attend to similar tokens there and add them"
(`Network.reference_expert`, `Network.predicts_image`).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from scone_pl.model.config import NetworkConfig
from scone_pl.model.decoder import DecoderLayer, JointAttention
from scone_pl.model.experts import generation_module
from scone_pl.model.network import Network

_SIMILARITY = 0.7
"""Correlation of the generation expert's query and key maps."""
_COPIED = 0.4
"""Fraction of the attended value that a head initially adds or subtracts."""


@torch.no_grad()
def random_model(config: NetworkConfig, seed: int) -> Network:
    """Builds on the CPU in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
        # Small residual branches at first, so that the stream does not grow with depth.
        branch_scale = 1 / math.sqrt(2 * config.decoder.num_layers)
        for name, parameter in model.named_parameters():
            if ("o_proj" in name or "down_proj" in name) and name.endswith("weight"):
                parameter.mul_(branch_scale)
        model.initialize_ends()
        # Not in the first layer, where values would be copied before any bridge has masked them.
        for layer in list(model.language_model.model.layers)[1:]:
            _attend_to_alike(cast(DecoderLayer, layer).self_attn, model)
    return model


def _attend_to_alike(attention: JointAttention, model: Network) -> None:
    """Correlates keys of references with queries of noisy tokens, and outputs with values, negative for a velocity."""
    q, o = (cast(nn.Linear, generation_module(attention, f"{name}_proj")).weight for name in "qo")
    read = getattr if model.reference_expert == "understanding" else generation_module
    k, v = (cast(nn.Linear, read(attention, f"{name}_proj")).weight for name in "kv")
    copied = _COPIED if model.predicts_image else -_COPIED
    group = len(q) // len(k)  # query heads that share a key head
    first_of_group = q.view(-1, group, attention.head_dim, q.shape[1])[:, 0].flatten(0, 1)
    k.copy_(_SIMILARITY * first_of_group + math.sqrt(1 - _SIMILARITY**2) * k)
    nn.init.orthogonal_(v)
    by_head = v.view(-1, 1, attention.head_dim, v.shape[1]).expand(-1, group, -1, -1).flatten(0, 2)
    o.copy_(0.5 * o + copied / group * by_head.T)
