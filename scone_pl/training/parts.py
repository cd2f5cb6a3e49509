"""The parts of the network that a stage may train, as the paper names them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from scone_pl.errors import UserError
from scone_pl.model.bases import BASES
from scone_pl.model.config import NetworkConfig
from scone_pl.model.experts import is_generation_parameter, training_together
from scone_pl.model.lora import is_lora_parameter
from scone_pl.model.network import Network

Part = Literal[
    "understanding",
    "generation",
    "connector",
    "latent_projections",
    "time_embedder",
    "vit",
    "autoencoder",
    "patch_embedder",
    "pixel_projections",
]
"""`understanding` holds the token embedding and the language head too: only text passes through them. In a decoder
without separate experts `understanding` and `generation` are the same weights, counted as `understanding`.
`latent_projections` are `vae2llm` and `llm2vae`. A base model has its own parts beside the experts
(`NetworkConfig.PARTS`): one without ViT and latents has a `patch_embedder` for references, and `pixel_projections`, the
embedder of noisy pixels and the head, in their place."""

EXPERTS: tuple[Part, ...] = ("understanding", "generation")

_BY_PREFIX: dict[str, Any] = {
    "language_model": "understanding",
    "autoencoder": "autoencoder",
    **{prefix: part for base in BASES.values() for prefix, part in base.config.PARTS.items()},
}


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, by its published name."""
    for length in (2, 1):
        part: Part | None = _BY_PREFIX.get(".".join(name.split(".")[:length]))
        if part is not None:
            return "generation" if part == "understanding" and is_generation_parameter(name) else part
    if is_generation_parameter(name):
        return "generation"
    raise KeyError(name)


def parts_of(config: NetworkConfig) -> list[str]:
    """The parts of a network."""
    return [*dict.fromkeys([*EXPERTS, *config.PARTS.values(), "autoencoder"])]


def has_parts(parts: Collection[str], config: NetworkConfig) -> bool:
    """Whether a network of `config` has all of `parts`."""
    return set(parts) <= set(parts_of(config))


def check_parts(parts: Collection[str], config: NetworkConfig) -> None:
    """Raises `UserError` if a network of `config` lacks one of `parts`."""
    own = parts_of(config)
    if missing := [part for part in parts if part not in own]:
        raise UserError(f"model.trainable names {missing[0]}, which this base model lacks; its parts: {', '.join(own)}")


def set_trainable(model: Network, parts: Collection[Part], *, lora: bool = False) -> None:
    """Freezes everything but `parts`. Frozen parameters get no gradient and no optimizer state.

    Args:
        model: the network.
        parts: what trains.
        lora: of the experts, only their adapters train.
    """
    trained = training_together(parts, model.config.decoder)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        adapted = lora and part in EXPERTS
        parameter.requires_grad_(part in trained and (not adapted or is_lora_parameter(name)))


def count_trainable(model: Network) -> dict[Part, int]:
    """Parameters of each part that train; parts without any are left out."""
    counts: dict[Part, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts


def count_parameters(model: Network) -> dict[Part, int]:
    """Parameters of each part."""
    counts: dict[Part, int] = {}
    for name, parameter in model.named_parameters():
        counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts
