"""Safetensors files of any size: read by slices, written in one pass.

The format is a header (length, then JSON: name -> dtype, shape, offsets) followed by the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from scone_pl.checkpoints.safetensors_header import HeaderEntry, read_header
from scone_pl.errors import UserError

TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Names of parameter types in a safetensors header."""
_DTYPE_OF = {name: dtype for dtype, name in TYPE_NAMES.items()}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written, fetched when its turn comes."""

    dtype: torch.dtype
    """It is written in."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """The whole tensor, of any dtype and on any device; a collective where it gathers shards."""

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> TensorSource:
        """Of a tensor in memory, sharded or not."""
        return cls(dtype or tensor.dtype, tuple(tensor.shape), lambda: whole_tensor(tensor))


class WeightFiles:
    """Named tensors in one or several safetensors files: headers read at once, tensors memory-mapped when asked for."""

    def __init__(
        self,
        files: list[Path],
        stack: ExitStack,
        leave_out: Callable[[str], bool] | None = None,
        listed: Mapping[str, Path] | None = None,
    ) -> None:
        """Reads the headers.

        Args:
            files: safetensors files.
            stack: closes what is opened.
            leave_out: names for which it is true are as if not there.
            listed: where an index says that each tensor lies; None = there is no index.

        Raises:
            UserError: a header is damaged, a tensor is in two files or not where `listed` says, or its type is none
                that weights have.
        """
        self._stack = stack
        self.left_out = 0
        """Tensors that `leave_out` hides."""
        self._file_of: dict[str, Path] = {}
        self._entries: dict[str, HeaderEntry] = {}
        self._handles: dict[Path, Any] = {}
        self.files = files[0].name if len(files) == 1 else f"{len(files)} files"
        """In words."""
        for file in files:
            for name, entry in read_header(file).items():
                if name in self._file_of:
                    raise UserError(
                        f"{file}: {name} is also in {self._file_of[name].name}; a tensor must be in one file"
                    )
                if listed is not None and listed.get(name) != file:
                    where = listed[name].name if name in listed else "no file"
                    raise UserError(f"{file}: holds {name}, which the index has in {where}; copy both again")
                self._file_of[name] = file
                self._entries[name] = entry
        for name in (listed or {}).keys() - self._entries.keys():
            raise UserError(f"{(listed or {})[name]}: lacks {name}, which the index lists there; copy both again")
        for name in list(self._entries):
            if leave_out is not None and leave_out(name):
                self.left_out += 1
                del self._entries[name]
            elif self._entries[name].dtype not in _DTYPE_OF:
                raise UserError(
                    f"{self._file_of[name]}: {name} is {self._entries[name].dtype}; weights must be "
                    f"{', '.join(TYPE_NAMES.values())}: convert the checkpoint first"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return self._entries[name].shape

    def source(self, name: str) -> TensorSource:
        """The stored tensor, to be written again as it is."""
        dtype = _DTYPE_OF[self._entries[name].dtype]
        return TensorSource(dtype, self.shape(name), lambda: self._handle(name).get_tensor(name))

    def _handle(self, name: str) -> Any:
        file = self._file_of[name]
        if file not in self._handles:
            try:
                self._handles[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError, RuntimeError) as error:
                raise UserError(f"{file}: can not be mapped into memory ({error}); is it whole?") from error
        return self._handles[file]

    def copy_into(self, name: str, tensor: Tensor) -> None:
        """Fills `tensor`; of a sharded one only this rank's part is read.

        Raises:
            UserError: a value is NaN or infinite.
        """
        part = own_part(tensor)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not local.numel():
            return
        handle = self._handle(name)
        stored = handle.get_tensor(name) if part is None else handle.get_slice(name)[part]
        if not is_finite(stored):
            raise UserError(f"{self._file_of[name]}: {name} holds NaN or infinite values; copy it again")
        local.copy_(stored)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, at a third of the time and none of the memory of `isfinite().all()`."""
    return not tensor.numel() or all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())


def own_part(tensor: Tensor) -> tuple[slice, ...] | None:
    """Where this rank's part of a sharded tensor lies in the whole; None = it holds the whole."""
    if not isinstance(tensor, DTensor):
        return None
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


@torch.no_grad()
def copy_part(whole: Tensor, into: Tensor) -> None:
    """Fills `into`, sharded or not, from a whole tensor that every rank has."""
    part = own_part(into)
    local = into.to_local() if isinstance(into, DTensor) else into
    local.copy_(whole if part is None else whole[part])


def write_tensors(tensors: Mapping[str, TensorSource], file: Path) -> None:
    """A safetensors file, written in one pass with one tensor at a time in memory.

    Raises:
        UserError: a value is NaN or infinite in the type to write it in.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, source in tensors.items():
        start, end = end, end + math.prod(source.shape) * source.dtype.itemsize
        header[name] = {"dtype": TYPE_NAMES[source.dtype], "shape": list(source.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns data to 8 bytes
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, source in tensors.items():
            whole = source.read().detach().cpu().to(source.dtype).contiguous()
            if not is_finite(whole):
                raise UserError(
                    f"{file}: {name} is NaN or infinite in {TYPE_NAMES[source.dtype]}, so the weights are unusable; "
                    "export an earlier snapshot, or with --dtype float32 if only this type is too narrow"
                )
            stream.write(whole.flatten().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor, a collective; others pass through."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
