"""Reads safetensors files by slices and writes them in one pass, whatever their size.

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
"""Parameter dtypes -> their names in a safetensors header."""
_DTYPE_OF = {name: dtype for dtype, name in TYPE_NAMES.items()}


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written, fetched lazily."""

    dtype: torch.dtype
    """The dtype in the file."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Returns the full tensor, of any dtype and on any device; a collective if the tensor is sharded."""

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> TensorSource:
        """The source of a tensor in memory, sharded or not."""
        return cls(dtype or tensor.dtype, tuple(tensor.shape), lambda: whole_tensor(tensor))


class WeightFiles:
    """Named tensors in one or several safetensors files: headers are read at once, tensors memory-mapped on access."""

    def __init__(
        self,
        files: list[Path],
        stack: ExitStack,
        exclude: Callable[[str], bool] | None = None,
        index_files: Mapping[str, Path] | None = None,
    ) -> None:
        """Reads the headers.

        Args:
            files: safetensors files.
            stack: closes the files.
            exclude: predicate of names that are ignored.
            index_files: tensor name -> file according to an index; None = there is no index.

        Raises:
            UserError: a header is damaged, a tensor is in two files or contradicts `index_files`, or has an unsupported
                dtype.
        """
        self._stack = stack
        self.num_excluded = 0
        """Number of tensors that `exclude` ignores."""
        self._file_of: dict[str, Path] = {}
        self._entries: dict[str, HeaderEntry] = {}
        self._handles: dict[Path, Any] = {}
        self.files = files[0].name if len(files) == 1 else f"{len(files)} files"
        """Description of the files, for messages."""
        for file in files:
            for name, entry in read_header(file).items():
                if name in self._file_of:
                    raise UserError(
                        f"{file}: {name} is also in {self._file_of[name].name}; a tensor must be in one file"
                    )
                if index_files is not None and index_files.get(name) != file:
                    where = index_files[name].name if name in index_files else "no file"
                    raise UserError(f"{file}: holds {name}, which the index has in {where}; copy both again")
                self._file_of[name] = file
                self._entries[name] = entry
        for name, file in (index_files or {}).items():
            if name not in self._entries:
                raise UserError(f"{file}: lacks {name}, which the index lists there; copy both again")
        for name in list(self._entries):
            if exclude is not None and exclude(name):
                self.num_excluded += 1
                del self._entries[name]
            elif self._entries[name].dtype not in _DTYPE_OF:
                raise UserError(
                    f"{self._file_of[name]}: {name} is {self._entries[name].dtype}; weights must be "
                    f"{', '.join(TYPE_NAMES.values())}: convert the checkpoint first"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header; the tensor is not read."""
        return self._entries[name].shape

    def source(self, name: str) -> TensorSource:
        """The stored tensor as a source to write it again unchanged."""
        dtype = _DTYPE_OF[self._entries[name].dtype]
        return TensorSource(dtype, self.shape(name), lambda: self._handle(name).get_tensor(name))

    def _handle(self, name: str) -> Any:
        file = self._file_of[name]
        if file not in self._handles:
            try:
                self._handles[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError, RuntimeError) as error:
                raise UserError(f"{file}: cannot be memory-mapped ({error}); is the file complete?") from error
        return self._handles[file]

    def copy_into(self, name: str, tensor: Tensor) -> None:
        """Fills `tensor`; for a sharded tensor only this rank's slices are read.

        Raises:
            UserError: a value is NaN or infinite.
        """
        part = local_slices(tensor)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not local.numel():
            return
        handle = self._handle(name)
        stored = handle.get_tensor(name) if part is None else handle.get_slice(name)[part]
        if not is_finite(stored):
            raise UserError(f"{self._file_of[name]}: {name} holds NaN or infinite values; copy it again")
        local.copy_(stored)
        if local.dtype == torch.float16 and not is_finite(local):
            raise UserError(f"{self._file_of[name]}: {name} exceeds the range of float16; use bfloat16 or float32")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; faster than `isfinite().all()` and without its mask."""
    return not tensor.numel() or all(math.isfinite(extreme.item()) for extreme in tensor.aminmax())


def local_slices(tensor: Tensor) -> tuple[slice, ...] | None:
    """Slices of the full tensor that this rank holds; None = not sharded."""
    if not isinstance(tensor, DTensor):
        return None
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


@torch.no_grad()
def copy_part(full: Tensor, target: Tensor) -> None:
    """Fills `target`, sharded or not, from the full tensor, which every rank has."""
    part = local_slices(target)
    local = target.to_local() if isinstance(target, DTensor) else target
    local.copy_(full if part is None else full[part])


def write_tensors(tensors: Mapping[str, TensorSource], file: Path) -> None:
    """Writes a safetensors file in one pass, with one tensor at a time in memory.

    Raises:
        UserError: a value is NaN or infinite in the file's dtype.
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
            full = source.read().detach().cpu().to(source.dtype).contiguous()
            if not is_finite(full):
                raise UserError(
                    f"{file}: {name} is NaN or infinite in {TYPE_NAMES[source.dtype]}, so the weights are unusable; "
                    "export an earlier snapshot, or with --dtype float32 if only this type is too narrow"
                )
            stream.write(full.flatten().view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor (a collective); returns others unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
