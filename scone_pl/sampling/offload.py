"""Keeps weights on the CPU while they are not needed, for GPUs on which the model does not fit.

`model`: ViT, connector and autoencoder are on the GPU only while they run. Embedding table and language head stay on
the CPU and compute there: they serve few text tokens. The decoder's layers stay on the GPU.

`sequential`: the same, and each decoder layer comes to the GPU only while it runs. All layers are copied for the
prefill and for each step, so the bus decides the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from scone_pl.errors import UserError
from scone_pl.model.network import Network

Offload = Literal["model", "sequential"]


def check_offload(kind: str | None, device: torch.device) -> None:
    """Raises `UserError` for an unknown kind, and without a GPU."""
    if kind is not None and kind not in get_args(Offload):
        raise UserError(f"offload {kind!r:.80} is not one of {', '.join(get_args(Offload))}, or null")
    if kind is not None and device.type == "cpu":
        raise UserError(f"offload {kind}: keeps weights on the CPU while a GPU computes; device is cpu, leave it out")


def visitors(model: Network, kind: Offload) -> list[nn.Module]:
    """What comes to the device only while it runs."""
    modules = [*model.towers, model.autoencoder]
    return [*modules, *model.language_model.model.layers] if kind == "sequential" else modules


def text_tables(model: Network) -> list[nn.Module]:
    """What stays on the CPU and computes there."""
    return [model.language_model.model.embed_tokens, model.language_model.lm_head]


def offload(model: Network, kind: Offload, device: torch.device) -> None:
    """Moves a model that is on the CPU to `device`, but for what `kind` keeps on the CPU; in place.

    Args:
        model: in eval mode.
        kind: see the module docstring.
        device: computes.
    """
    modules = visitors(model, kind)
    for module in modules:
        weights = _Weights(module, device)
        if module is model.autoencoder:  # called by other names than `forward`
            for name in ("encode", "decode"):
                setattr(module, name, weights.there_during(getattr(module, name)))
        else:
            module.register_forward_pre_hook(lambda *_, weights=weights: weights.bring())
            module.register_forward_hook(lambda *_, weights=weights: weights.leave(), always_call=True)
    for table in text_tables(model):
        table.register_forward_pre_hook(lambda _, inputs: tuple(x.cpu() for x in inputs))
        table.register_forward_hook(lambda *arguments: arguments[-1].to(device))
    staying = {id(t) for module in (*modules, *text_tables(model)) for t in _tensors(module)}
    for tensor in _tensors(model):
        if id(tensor) not in staying:
            tensor.data = tensor.data.to(device)


class _Weights:
    """The parameters and buffers of a module, on the CPU and, for the while, on a device."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.tensors = list(_tensors(module))
        self.host = [t.data.pin_memory() if device.type == "cuda" else t.data for t in self.tensors]
        self.leave()

    def bring(self) -> None:
        for tensor, host in zip(self.tensors, self.host, strict=True):
            tensor.data = host.to(self.device, non_blocking=True, copy=True)

    def leave(self) -> None:
        for tensor, host in zip(self.tensors, self.host, strict=True):
            tensor.data = host

    def there_during(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.bring()
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return call


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
