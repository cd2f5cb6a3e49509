"""LoRA adapters of a pipeline, with the methods of diffusers: load, weight, fuse, unload."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from scone_pl.checkpoints.adapters import read_adapter
from scone_pl.errors import UserError
from scone_pl.model.adapted import AdaptedLinear
from scone_pl.model.quantized import quantized_weights, weight_shapes
from scone_pl.ranges import check_number

if TYPE_CHECKING:
    from scone_pl.model.network import Network
    from scone_pl.sampling.offload import Offload


class LoRAAdapters:
    """The part of a pipeline that holds LoRA adapters. All that are loaded act, with weight 1, until `set_adapters`."""

    model: Network
    _loaded: dict[str, float]
    """Adapter -> the weight that it acts with; 0 = it does not."""
    _fused: bool
    _offload: Offload | None

    def load_lora_weights(
        self, pretrained_model_name_or_path: str | os.PathLike[str], *, adapter_name: str | None = None
    ) -> None:
        """Loads an adapter in peft's layout, which then acts beside those that act already.

        Args:
            pretrained_model_name_or_path: folder, such as `adapter` in the weights of a run, or an id on the hub.
            adapter_name: letters, digits, _ and -; None = default, default_1, ...

        Raises:
            UserError: no adapter, one that does not fit the model, or the name is taken.
        """
        if self._offload == "sequential":
            raise UserError("load_lora_weights: load adapters before enable_sequential_cpu_offload")
        name = adapter_name or next(n for n in _names() if n not in self._loaded)
        if not re.fullmatch(r"[\w-]{1,80}", name):
            raise UserError(f"adapter_name {name!r:.80}: give letters, digits, _ and -")
        if name in self._loaded:
            raise UserError(f"adapter_name {name}: is loaded already; choose another, or delete_adapters({name!r})")
        self._refuse_fused("load_lora_weights")
        adapter = read_adapter(pretrained_model_name_or_path)
        adapter.check_binds(weight_shapes(self.model))
        modules = {module: self.model.get_submodule(module) for module in adapter.pairs}
        for module, linear in modules.items():
            if not isinstance(linear, nn.Linear):
                raise UserError(f"{adapter.source}: adapts {module}, which is no linear map")
        for module, (a, b, factor) in adapter.pairs.items():
            linear = modules[module]
            if not isinstance(linear, AdaptedLinear):
                linear = AdaptedLinear(linear)  # type: ignore[arg-type] # checked above
                _replace(self.model, module, linear)
            linear.add(name, a, b, factor, self.model.dtype)
        self._loaded[name] = 1.0
        self._activate()

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Lets these adapters act, and no others.

        Args:
            adapter_names: one or several.
            adapter_weights: one for all, or one each; None = 1.

        Raises:
            UserError: an adapter that is not loaded, or another number of weights.
        """
        names = self._known(adapter_names)
        weights = [adapter_weights] * len(names) if isinstance(adapter_weights, int | float | None) else adapter_weights
        if len(weights) != len(names):
            raise UserError(
                f"there are {len(weights)} adapter_weights for {len(names)} adapters; give one each, or one"
            )
        for weight in weights:
            if weight is not None:
                check_number("adapter_weights", weight, minimum=-100, maximum=100)
        self._refuse_fused("set_adapters")
        chosen = {name: 1.0 if weight is None else float(weight) for name, weight in zip(names, weights, strict=True)}
        self._loaded = {name: chosen.get(name, 0.0) for name in self._loaded}
        self._activate()

    def get_list_adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self._loaded)

    def get_active_adapters(self) -> list[str]:
        """Names of those that act."""
        return [name for name, weight in self._loaded.items() if weight]

    def disable_lora(self) -> None:
        """Lets no adapter act until `enable_lora` or `set_adapters`."""
        self._refuse_fused("disable_lora")
        for module in self._adapted():
            module.activate({})

    def enable_lora(self) -> None:
        """Undoes `disable_lora`."""
        self._activate()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Removes adapters.

        Raises:
            UserError: an adapter that is not loaded.
        """
        self._refuse_fused("delete_adapters")
        for name in self._known(adapter_names):
            for module in self._adapted():
                module.remove(name)
            del self._loaded[name]

    def fuse_lora(self, *, adapter_names: Sequence[str] | None = None, lora_scale: float = 1.0) -> None:
        """Adds adapters to the weights, so that they cost nothing; keeps a copy of the weights on the CPU.

        Args:
            adapter_names: None = those that act, with their weights; others are fused with weight 1.
            lora_scale: multiplies all of them.

        Raises:
            UserError: nothing is loaded, or adapters are fused already.
        """
        names = self._known(self.get_active_adapters() if adapter_names is None else adapter_names)
        if not names:
            raise UserError("fuse_lora: no adapter acts; load_lora_weights or set_adapters first")
        if any(True for _ in quantized_weights(self.model)):
            raise UserError(
                "fuse_lora: the weights are quantised; give adapters to from_pretrained to merge them first"
            )
        check_number("lora_scale", lora_scale, minimum=-100, maximum=100)
        self._refuse_fused("fuse_lora")
        weights = {name: lora_scale * (self._loaded[name] or 1.0) for name in names}
        for module in self._adapted():
            module.fuse(weights)
        self._fused = True

    def unfuse_lora(self) -> None:
        """Undoes `fuse_lora`: the weights are what they were, bit by bit, and the adapters act beside them again.

        Raises:
            UserError: nothing is fused, or the adapters were unloaded since.
        """
        if not self._fused:
            raise UserError("unfuse_lora: no adapter is fused, or they were unloaded after fuse_lora")
        for module in self._adapted():
            module.unfuse()
        self._fused = False

    def unload_lora_weights(self) -> None:
        """Removes all adapters; what is fused stays in the weights."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, AdaptedLinear):
                _replace(self.model, name, module.plain())
        self._loaded, self._fused = {}, False

    def _activate(self) -> None:
        weights = {name: weight for name, weight in self._loaded.items() if weight}
        for module in self._adapted():
            module.activate(weights)

    def _adapted(self) -> Iterator[AdaptedLinear]:
        return (module for module in self.model.modules() if isinstance(module, AdaptedLinear))

    def _known(self, names: str | Sequence[str]) -> list[str]:
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self._loaded:
                loaded = ", ".join(self._loaded) or "none"
                raise UserError(f"adapter {name!r:.80} is not loaded; loaded are: {loaded}")
        return names

    def _refuse_fused(self, method: str) -> None:
        if self._fused:
            raise UserError(f"{method}: adapters are fused into the weights; call unfuse_lora() first")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _names() -> Iterator[str]:
    yield "default"
    number = 1
    while True:
        yield f"default_{number}"
        number += 1
