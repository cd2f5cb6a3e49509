"""Twenty steps with each switch for speed or memory on minimise the same loss as with all of them off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_step import OBJECTIVES, make_batch, make_model, step_loss

from scone_pl.data.stream import Batch
from scone_pl.model import compiled
from scone_pl.model.scone import Scone
from scone_pl.model.vae import as_float

STEPS = 20
BATCHES = 3
Switch = Callable[[Scone], None]


def in_bytes(batch: Batch) -> Batch:
    """Its pixels as uint8, which the device turns to floats."""
    pack = batch.sequence
    images = tuple(((image + 1) * 127.5).round().to(torch.uint8) for image in pack.images)
    patches = ((pack.vit_patches + 1) * 127.5).round().to(torch.uint8)
    return dataclasses.replace(batch, sequence=dataclasses.replace(pack, images=images, vit_patches=patches))


def in_floats(batch: Batch) -> Batch:
    """The same pixels, as floats."""
    pack = in_bytes(batch).sequence
    images, patches = tuple(map(as_float, pack.images)), as_float(pack.vit_patches)
    return dataclasses.replace(batch, sequence=dataclasses.replace(pack, images=images, vit_patches=patches))


def in_latents(batch: Batch) -> Batch:
    """Its images encoded before (`data.latents`)."""
    pack, encoder = batch.sequence, make_model().autoencoder
    moments = tuple(encoder.moments(image[None])[0] for image in pack.images)
    return dataclasses.replace(batch, sequence=dataclasses.replace(pack, images=moments, encoded=True))


def curve(
    *,
    transform: Callable[[Batch], Batch] = lambda batch: batch,
    switch: Switch = lambda model: None,
    fused: bool = True,
) -> list[float]:
    """Losses of `STEPS` steps with a soft bridge, whose gradient reaches every part."""
    model, objective = make_model(), OBJECTIVES["soft"]
    switch(model)
    batches = [transform(in_floats(make_batch(seed))) for seed in range(BATCHES)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=fused)
    losses = []
    for step in range(STEPS):
        loss = step_loss(model, objective, batches[step % BATCHES])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def checkpointing(model: Scone, *, recompute_attention: bool = True, layers_kept: int = 0) -> None:
    decoder = model.language_model.model
    decoder.activation_checkpointing = True
    decoder.recompute_attention, decoder.layers_kept = recompute_attention, layers_kept


def with_bfloat16_autoencoder(model: Scone) -> None:
    """A space-to-depth has no weights: its input is rounded instead."""
    moments = model.autoencoder.moments
    model.autoencoder.moments = lambda images: moments(images.bfloat16())  # type: ignore[method-assign]  # one model's


SWITCHES: dict[str, tuple[dict[str, Any], float]] = {
    "pixels as uint8": ({"transform": in_bytes}, 0.0),
    "data.latents": ({"transform": in_latents}, 0.0),
    "activation_checkpointing": ({"switch": checkpointing}, 1e-5),
    "recompute_attention false": ({"switch": lambda m: checkpointing(m, recompute_attention=False)}, 1e-5),
    "layers_kept": ({"switch": lambda m: checkpointing(m, layers_kept=2)}, 1e-5),
    "compile": ({"switch": lambda m: compiled.set_compiled(m, True)}, 1e-4),
    "fused optimizer off": ({"fused": False}, 1e-4),
    "autoencoder_dtype bfloat16": ({"switch": with_bfloat16_autoencoder}, 2e-2),
}
"""What turns each on, and how far any loss of the curve may be off, relative to it."""


@pytest.mark.slow
def test_curves_with_each_switch_are_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)  # its formulas; test_compiled.py compiles
    plain = curve()
    assert [plain[0], plain[-1]] == pytest.approx([7.8399, 1.6918], rel=1e-2)
    for name, (changes, tolerance) in SWITCHES.items():
        changed = curve(**changes)
        assert changed == pytest.approx(plain, rel=tolerance, abs=0), name
