"""Routing tokens to the understanding or the generation expert.

Between attentions the two experts never mix, so their hidden states stay separate, each contiguous; only queries, keys
and values are merged into sequence order. A dense decoder (`DecoderConfig.separate_experts` false) runs the same code
with one set of modules.

Shapes: L tokens = U understanding + N generation (latent) tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scone_pl.model import compiled
from scone_pl.model.config import DecoderConfig
from scone_pl.model.fused import Divide, Merge, RMSNormFunction
from scone_pl.model.sequence import PackedSequence


class ByExpert(NamedTuple):
    """A tensor of (U, ...) and one of (N, ...)."""

    understanding: Tensor
    generation: Tensor

    def map(self, understanding: Callable[[Tensor], Tensor], generation: Callable[[Tensor], Tensor]) -> ByExpert:
        """Each expert's own function on its own tokens."""
        return ByExpert(understanding(self.understanding), generation(self.generation))

    def through(self, owner: nn.Module, name: str) -> ByExpert:
        """Each expert's own module called `name` in `owner`; in a dense decoder one serves both."""
        return self.map(getattr(owner, name), generation_module(owner, name))

    def __add__(self, other: ByExpert) -> ByExpert:  # type: ignore[override]  # adds states, where a tuple appends
        return ByExpert(self.understanding + other.understanding, self.generation + other.generation)


class Routing:
    """Indices of each expert's tokens in the sequence."""

    def __init__(self, pack: PackedSequence) -> None:
        self.understanding_index = pack.understanding_index
        self.generation_index = pack.latent_index
        self.length = len(pack)

    @classmethod
    def between(cls, understanding_index: Tensor, generation_index: Tensor, length: int) -> Routing:
        """Routing of tokens at any indices (U,) and (N,) of a sequence of `length` tokens.

        `merge` gives 0 at an index without a token.
        """
        routing = cls.__new__(cls)
        routing.understanding_index, routing.generation_index = understanding_index, generation_index
        routing.length = length
        return routing

    def merge(self, x: ByExpert) -> Tensor:
        """-> (L, ...) in sequence order."""
        return Merge.apply(*x, self.understanding_index, self.generation_index, self.length)

    def divide(self, x: Tensor) -> ByExpert:
        """(L, ...) -> by expert."""
        return ByExpert(*Divide.apply(x, self.understanding_index, self.generation_index))


GENERATION_MARKS = ("_moe_gen", "_mot_gen")
"""Suffixes of the generation expert's modules in published names; which one is `DecoderConfig.generation_mark`."""


class HoldsExperts(nn.Module):
    """Base of modules that hold a module of the same name for each expert."""

    generation_mark: str
    """Suffix of the generation expert's; empty in a dense decoder, where one module serves both."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.generation_mark = config.generation_mark if config.separate_experts else ""

    @property
    def marks(self) -> tuple[str, ...]:
        """Suffixes of the modules: of the understanding expert's, which has none, and of the generation expert's."""
        return ("", self.generation_mark) if self.generation_mark else ("",)


def generation_module(owner: nn.Module, name: str) -> nn.Module:
    """The module of latent tokens: the generation expert's `name` in `owner`, or the only one in a dense decoder."""
    module: nn.Module = getattr(owner, name + owner.generation_mark)  # type: ignore[operator]  # a Module's attribute
    return module


def is_generation_parameter(name: str) -> bool:
    """Whether a published name of the decoder's parameters belongs to the generation expert."""
    return any(mark in name for mark in GENERATION_MARKS)


def without_mark(name: str) -> str:
    """A module's name without the generation expert's suffix."""
    for mark in GENERATION_MARKS:
        name = name.removesuffix(mark)
    return name


def training_together(parts: Collection[str], config: DecoderConfig) -> frozenset[str]:
    """The parts that train if `parts` are named: without separate experts, naming one expert names both."""
    experts = {"understanding", "generation"}
    shared = not config.separate_experts and not experts.isdisjoint(parts)
    return frozenset(parts) | (experts if shared else frozenset())


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in at least float32."""

    compiled = False
    """See `compiled.set_compiled`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.compiled:
            return compiled.rms_norm(x, self.weight, self.eps)
        return RMSNormFunction.apply(x, self.weight, self.eps)
