"""The parts of the network that a stage may train, as the paper names them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from scone_pl.model.experts import is_generation_parameter, training_together
from scone_pl.model.lora import is_lora_parameter
from scone_pl.model.scone import Scone

Part = Literal["understanding", "generation", "connector", "latent_projections", "time_embedder", "vit", "autoencoder"]
"""`understanding` holds the token embedding and the language head too: only text passes through them. In a decoder
without separate experts `understanding` and `generation` are the same weights, counted as `understanding`.
`latent_projections` are `vae2llm` and `llm2vae`."""

EXPERTS: tuple[Part, ...] = ("understanding", "generation")

_BY_PREFIX: dict[str, Part] = {
    "language_model": "understanding",
    "connector": "connector",
    "vae2llm": "latent_projections",
    "llm2vae": "latent_projections",
    "time_embedder": "time_embedder",
    "vit_model": "vit",
    "autoencoder": "autoencoder",
}


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, by its published name."""
    if is_generation_parameter(name):
        return "generation"
    return _BY_PREFIX[name.split(".", 1)[0]]


def set_trainable(model: Scone, parts: Collection[Part], *, lora: bool = False) -> None:
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


def count_trainable(model: Scone) -> dict[Part, int]:
    """Parameters of each part that train; parts without any are left out."""
    counts: dict[Part, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts


def count_parameters(model: Scone) -> dict[Part, int]:
    """Parameters of each part."""
    counts: dict[Part, int] = {}
    for name, parameter in model.named_parameters():
        counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts
