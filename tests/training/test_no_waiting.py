"""No part of a training step makes the host wait for the device, apart from the gradient norm, which does once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_step import make_batch
from model_helpers import tiny_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scone_pl.estimate.tracking import fused_kernels
from scone_pl.model.bridge import Bridge
from scone_pl.model.config import BridgeConfig
from scone_pl.model.flops import spared_pairs
from scone_pl.training import losses
from scone_pl.training.metrics import Means, blocked_fraction
from scone_pl.training.network import network_on_meta

LAYERS = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 2, "threshold": 0.1}
BRIDGES = {
    "off": None,
    "hard": BridgeConfig(**LAYERS),
    "early": BridgeConfig(**LAYERS, hide_references_early=True),
    "quantile": BridgeConfig(**(LAYERS | {"threshold": 0.88}), quantile=0.5),
    "soft": BridgeConfig(**LAYERS, mode="soft", temperature=0.3),
    "otsu, attention": BridgeConfig(**(LAYERS | {"threshold": 0.88}), adaptive_threshold="otsu", pooling="attention"),
    "gap, max": BridgeConfig(**(LAYERS | {"threshold": 0.88}), adaptive_threshold="gap", pooling="max"),
}


class OnlyAsynchronousCopies(TorchDispatchMode):
    """Refuses copies from the host that would wait; `indices.to_device` makes those that do not."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result, options = func(*args, **(kwargs or {})), kwargs or {}
        if func is torch.ops.aten._to_copy.default and result.is_meta and not args[0].is_meta:
            assert options.get("non_blocking"), "a copy from pageable memory: use indices.to_device"
        return result


@pytest.mark.parametrize("name", BRIDGES)
def test_a_step_reads_no_value(name: str) -> None:
    """A tensor on the meta device has no value: `.item()`, `nonzero` or an index by a mask would raise."""
    bridge = BRIDGES[name]
    model = network_on_meta(tiny_config(), ("understanding", "generation", "vit"), dtype=torch.bfloat16).train()
    model.attention = "varlen"
    pack = make_batch().sequence.to("meta")
    shape = len(pack.latent_index), model.config.latent_token_size
    clean, noise = (torch.empty(shape, device="meta") for _ in range(2))
    means = Means("loss", "blocked_fraction").to("meta")
    with OnlyAsynchronousCopies(), fused_kernels():
        result = losses.flow_matching(model, pack, clean, noise, bridge=bridge, similarity_grad=True)
        loss: Tensor = result.squared_error.mean() + losses.text_cross_entropy(result.output, pack)
        state = result.output.bridge
        if bridge is not None and state is not None:
            threshold = Bridge(bridge, pack).threshold(state.similarity.detach())
            loss = loss + losses.alignment(state, pack, threshold, 0.1)
            fraction, references = blocked_fraction(state, pack)
            means.update({"blocked_fraction": fraction}, references)
            spared_pairs(pack, state.blocked, 4, bridge)
        means.update({"loss": loss})
        loss.backward()


def test_values_of_the_meta_device_cannot_be_read() -> None:
    """What the test above rests on."""
    x = torch.empty(4, device="meta")
    for read in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0], lambda: bool(x.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    with OnlyAsynchronousCopies(), pytest.raises(AssertionError, match="pageable"):
        torch.zeros(3).to("meta")
