"""Where and how a pipeline computes: device, dtype, offloading, tiles, compiled layers."""

from __future__ import annotations

from typing import Any, Self

import torch

from scone_pl.checkpoints.model import reset_position_tables
from scone_pl.errors import UserError
from scone_pl.model.network import Network
from scone_pl.model.tiling import TILE, check_tile
from scone_pl.sampling.checks import as_device, as_dtype
from scone_pl.sampling.offload import Offload, check_offload, offload


class Placement:
    """The part of a pipeline that moves its model."""

    model: Network
    _offload: Offload | None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def to(self, *targets: Any, device: Any = None, dtype: Any = None) -> Self:
        """Moves the weights to a device, a dtype, or both, in place: `to("cuda")`, `to("cuda", torch.bfloat16)`.

        Args:
            targets: a device, a dtype, or both.
            device: the device by name of the argument.
            dtype: the dtype by name of the argument.

        Returns:
            The pipeline.

        Raises:
            UserError: a device or dtype that is not available.
        """
        for target in targets:
            if isinstance(target, torch.dtype):
                dtype = target
            else:
                device = target
        if self._offload is not None:
            raise UserError(f"to: offload {self._offload} decides where the weights are; load the pipeline anew")
        new_device = self.device if device is None else as_device(device)
        new_dtype = self.dtype if dtype is None else as_dtype(dtype)
        self.model.to(device=new_device, dtype=new_dtype)
        reset_position_tables(self.model)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str | int = "cuda") -> None:
        """Computes on `device`, where ViT, connector and autoencoder are only while they run (`offload.py`).

        Call it on a pipeline that is on the CPU, after `load_lora_weights`.

        Raises:
            UserError: no GPU, or the pipeline is on one already.
        """
        self._start_offload("model", device)

    def enable_sequential_cpu_offload(self, device: torch.device | str | int = "cuda") -> None:
        """As `enable_model_cpu_offload`, and each decoder layer is on `device` only while it runs: slow, but small."""
        self._start_offload("sequential", device)

    def _start_offload(self, kind: Offload, device: torch.device | str | int) -> None:
        target = as_device(device)
        check_offload(kind, target)
        if self._offload is not None or self.device.type != "cpu":
            where = self._offload or f"on {self.device}"
            raise UserError(f"offload {kind}: the pipeline is {where} already; load it with device_map cpu first")
        offload(self.model, kind, target)
        self._offload = kind

    def enable_vae_tiling(self, tile: int = TILE) -> None:
        """Encodes and decodes images by overlapping tiles, which bounds memory and changes images a little.

        Args:
            tile: side in pixels, a multiple of 64.

        Raises:
            UserError: another size.
        """
        check_tile(tile)
        self.model.autoencoder.tile = tile

    def disable_vae_tiling(self) -> None:
        """Undoes `enable_vae_tiling`."""
        self.model.autoencoder.tile = None


def compile_layers(model: Network) -> None:
    """Compiles every decoder layer in place; attention over the cache stays eager (see `CachedPlan`)."""
    # Layers differ by their index; without this each would be compiled anew, up to dynamo's limit of 8.
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    for layer in model.language_model.model.layers:
        layer.compile(dynamic=True)
