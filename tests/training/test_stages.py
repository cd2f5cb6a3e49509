"""The stages' table against docs/specification.md 6, on the published model's own parameter names (meta device)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig, bagel_7b
from scone_pl.training.module import SconeModule
from scone_pl.training.optimizer import OptimizerConfig
from scone_pl.training.parts import part_of
from scone_pl.training.stages import BridgeFormation, BridgeGuidance, Composition

TRAINED = {
    Composition: {"understanding", "generation", "connector", "latent_projections"},
    BridgeFormation: {"understanding", "connector"},
    BridgeGuidance: {"understanding", "generation"},
}


@pytest.mark.parametrize("stage", TRAINED)
def test_trainable_sets_at_7b(stage: type[SconeModule], bagel_folder: Path) -> None:
    module = stage(init_from=str(bagel_folder))
    parameters = dict(module.network.on_meta().named_parameters())
    trained = {part_of(name) for name, p in parameters.items() if p.requires_grad}
    assert trained == TRAINED[stage]
    # Every parameter of a part trains, none of any other, and the frozen towers never do (docs/specification.md 2).
    assert all(p.requires_grad == (part_of(n) in TRAINED[stage]) for n, p in parameters.items())
    frozen = [n for n, p in parameters.items() if not p.requires_grad]
    assert any(n.startswith("vit_model.") for n in frozen)
    assert any(n.startswith("autoencoder.") for n in frozen)
    layer = "language_model.model.layers.27.mlp.down_proj.weight"
    assert parameters[layer].requires_grad
    generation = parameters[layer.replace("mlp", "mlp_moe_gen")]
    assert generation.requires_grad == ("generation" in TRAINED[stage])
    assert all(p.is_meta for p in parameters.values())


def test_the_autoencoder_alone_may_be_in_bfloat16(bagel_folder: Path) -> None:
    network = Composition(init_from=str(bagel_folder), autoencoder_dtype="bfloat16").network
    dtypes = {(n.startswith("autoencoder."), p.dtype) for n, p in network.on_meta().named_parameters()}
    assert dtypes == {(True, torch.bfloat16), (False, torch.float32)}


def test_masks_and_optimizer_are_the_papers() -> None:
    assert BridgeConfig() == BridgeConfig(
        source_layer=8, first_masked_layer=9, last_masked_layer=15, threshold=0.88, apply_mask=True
    )
    config = OptimizerConfig()
    assert (config.lr, config.betas, config.eps, config.weight_decay) == (2e-5, (0.9, 0.95), 1e-15, 0.0)
    assert config.warmup_steps == 2000


def test_the_autoencoder_has_the_published_scale() -> None:
    config = bagel_7b().autoencoder
    assert (config.kind, config.scale_factor, config.shift_factor) == ("flux", 0.3611, 0.1159)
    assert (config.base_channels, config.channel_multipliers, config.num_res_blocks) == (128, (1, 2, 4, 4), 2)


def test_the_average_follows_every_optimizer_step(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(pl.LightningModule, "optimizer_step", lambda self, *args, **kwargs: order.append("weights"))
    module: Any = object.__new__(SconeModule)
    pl.LightningModule.__init__(module)
    module.ema = None
    module.optimizer_step()
    module.ema = SimpleNamespace(update=lambda: order.append("average"))
    module.optimizer_step()
    assert order == ["weights", "weights", "average"]


def test_default_masks_of_the_stages(bagel_folder: Path) -> None:
    folder = str(bagel_folder)
    assert Composition(folder).settings.bridge is None
    assert BridgeFormation(folder).settings.bridge == BridgeConfig()
    assert BridgeGuidance(folder).settings.bridge == BridgeConfig()
    assert BridgeGuidance(folder, bridge=None).settings.bridge is None
    assert BridgeFormation(folder).predictor.sampling.bridge is None
    assert BridgeFormation(folder, mask_sampling=True).predictor.sampling.bridge == BridgeConfig()


def test_warmup_is_linear_then_constant() -> None:
    config = OptimizerConfig(warmup_steps=4)
    assert [config.rate_factor(step, 6) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    falling = OptimizerConfig(warmup_steps=1, decay_steps=4)
    assert [falling.rate_factor(step, 6) for step in range(7)] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_mistakes_are_named(bagel_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ByteDance-Seed/BAGEL-7B-MoT.*experiments/mini"):
        Composition(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"llm_config\.json is missing"):
        Composition(str(tmp_path))
    with pytest.raises(UserError, match=r"last_masked_layer is 28, but the last decoder layer .* is 27"):
        BridgeFormation(str(bagel_folder), bridge=BridgeConfig(last_masked_layer=28))
