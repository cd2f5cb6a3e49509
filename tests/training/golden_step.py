"""One whole training step of a tiny model, and the gradient recorded from it.

`python tests/training/golden_step.py` records tests/golden/gradients.json again, after a change that is supposed
to change the loss.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "model")]
from model_helpers import (
    EVERYTHING,
    SEQUENCE_FORMAT,
    add_sample,
    random_image,
    tiny_model,
)
from running import ROOT

from scone_pl.data.stream import Batch, StreamPosition
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import BridgeConfig
from scone_pl.model.scone import Scone
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.objective import Objective
from scone_pl.training.parts import set_trainable

GOLDEN = ROOT / "tests/golden/gradients.json"
TRAINED = ("understanding", "generation", "connector", "latent_projections")
_BRIDGE = {"source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 2, "threshold": 0.1}
OBJECTIVES = {
    "no bridge": Objective(),
    "hard": Objective(bridge=BridgeConfig(**_BRIDGE), text_loss_weight=0.4, alignment=AlignmentConfig(weight=0.7)),
    "soft": Objective(bridge=BridgeConfig(**_BRIDGE, mode="soft", temperature=0.3), timestep_shift=2.0),
}
CPU = torch.device("cpu")


def make_batch(seed: int = 1) -> Batch:
    """Samples of all kinds, and one with an answer and with labels of its ViT tokens."""
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    for number, sample in enumerate(EVERYTHING):
        add_sample(builder, **{"seed": number, "key": f"s{number}"} | sample)
    builder.begin_sample("answered")
    builder.add_vae(random_image(2, 2, 7), reference=0)
    builder.add_vit(random_image(2, 3, 8), reference=0)
    builder.add_text([6, 9, 12])
    builder.add_text([20, 21], loss=True)
    pack = builder.build()
    assert pack.vit_labels is not None
    pack.vit_labels[-6:] = torch.tensor([1.0, 0.0, 1.0, torch.nan, 0.0, 1.0])
    return Batch(pack, StreamPosition(0, 0, 0), seed=seed)


def make_model() -> Scone:
    """All that a stage may train trains."""
    model = tiny_model().train()
    set_trainable(model, TRAINED)
    return model


def step_loss(model: Scone, objective: Objective, batch: Batch) -> Tensor:
    """What is minimised, of the only pack of a step."""
    losses = objective.pack_losses(model, batch, CPU, sample_posterior=True)
    pack = batch.sequence
    return objective.step_losses(losses, targets=len(pack.target_index), labels=len(pack.label_ids), packs=1).total


def gradients(objective: Objective) -> dict[str, tuple[float, float]]:
    """Norm of each parameter's gradient, and its product with a fixed random vector; under `loss` the loss."""
    model = make_model()
    loss = step_loss(model, objective, make_batch())
    loss.backward()
    result = {"loss": (loss.item(), 0.0)}
    generator = torch.Generator().manual_seed(3)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.grad is not None:
            direction = torch.randn(parameter.shape, generator=generator)
            result[name] = (parameter.grad.norm().item(), (parameter.grad * direction).sum().item())
    return result


def main() -> None:
    """Records the golden gradients."""
    parts = []
    for name, objective in OBJECTIVES.items():
        rows = [f'"{key}": [{norm:.7g}, {product:.7g}]' for key, (norm, product) in gradients(objective).items()]
        parts.append(f'"{name}": {{\n  ' + ",\n  ".join(rows) + "}")
    GOLDEN.write_text("{" + ",\n ".join(parts) + "}\n")
    json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    main()
