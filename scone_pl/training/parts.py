"""The parts of the network that a stage may train, as the paper names them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from scone_pl.model.experts import is_generation_parameter
from scone_pl.model.scone import Scone

Part = Literal["understanding", "generation", "connector", "latent_projections", "time_embedder", "vit", "autoencoder"]
"""`understanding` holds the token embedding and the language head too: only text passes through them.
`latent_projections` are `vae2llm` and `llm2vae`."""

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


def set_trainable(model: Scone, parts: Collection[Part]) -> None:
    """Freezes everything but `parts`. Frozen parameters get no gradient and no optimizer state."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)


def count_parameters(model: Scone) -> dict[Part, int]:
    """Parameters of each part."""
    counts: dict[Part, int] = {}
    for name, parameter in model.named_parameters():
        counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return counts
