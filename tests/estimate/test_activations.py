"""Predicted activations against what torch's allocator gave out in a real step."""

from __future__ import annotations

import dataclasses
import gc
import math

import pytest
import torch
from measuring import allocated_peak
from model_helpers import TWO_REFERENCES, make_pack, tiny_model

from scone_pl.data.packing import PackingConfig
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.estimate.activations import dry_step, step_activations, to_meta
from scone_pl.estimate.memory import encode_bytes
from scone_pl.estimate.state import Network, Plan
from scone_pl.estimate.tracking import LiveBytes
from scone_pl.estimate.workload import typical_pack
from scone_pl.model.config import AutoencoderConfig, SconeConfig, bagel_7b, mini, mini_photo
from scone_pl.model.lora import LoRAConfig, add_lora
from scone_pl.model.quantized import Quantization, quantize_layers, quantized_weights
from scone_pl.model.sequence import PackedSequence
from scone_pl.model.vae import build_autoencoder
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.parts import Part, set_trainable

TOLERANCE = 0.05
"""Of the peak: small tensors that the meta device or the stand-in for the attention kernel do without."""
LAYERS = 6
LARGE = {"references": [((8, 8), (8, 8)), ((8, 7), (7, 8))], "text": 20, "targets": [(8, 8)]}
FORMATION: tuple[Part, ...] = ("understanding", "connector")
COMPOSITION: tuple[Part, ...] = ("understanding", "generation", "connector", "latent_projections")


def measured_peak(
    trained: tuple[Part, ...], checkpointing: bool, quantization: Quantization | None = None
) -> tuple[int, SconeConfig, PackedSequence]:
    """Bytes that the allocator gave out in forward and backward, weights and gradients apart; QLoRA if quantised."""
    model = tiny_model(num_layers=LAYERS, hidden_size=64, intermediate_size=160).train()
    if quantization is not None:
        add_lora(model.language_model.model.layers, LoRAConfig(), trained)
        stored = {name: p.detach().clone() for name, p in model.named_parameters()}
        quantize_layers(model.language_model.model.layers, quantization)
        for name, module in quantized_weights(model):
            module.set_weight(stored[name])
    set_trainable(model, trained, lora=quantization is not None)
    model.language_model.model.activation_checkpointing = checkpointing
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    pack = make_pack(LARGE, LARGE, TWO_REFERENCES)
    clean = model.encode_images(pack)
    noise = torch.ones_like(clean)

    def step() -> None:
        result = flow_matching(model, pack, clean, noise)
        loss = result.squared_error.mean() + text_cross_entropy(result.output, pack)
        del result
        loss.backward()

    step()  # builds the pack's index tensors
    gc.collect()
    peak = allocated_peak(step)
    return peak, model.config, pack


@pytest.mark.parametrize(
    ("trained", "checkpointing"),
    [
        (COMPOSITION, True),
        pytest.param(FORMATION, False, marks=pytest.mark.slow),
        pytest.param(COMPOSITION, False, marks=pytest.mark.slow),
        pytest.param(FORMATION, True, marks=pytest.mark.slow),
    ],
)
def test_peak_of_a_real_step(trained: tuple[Part, ...], checkpointing: bool) -> None:
    measured, config, pack = measured_peak(trained, checkpointing)
    found = step_activations(config, pack, trained, checkpointing=checkpointing, dtype=torch.float32)
    assert found.peak == pytest.approx(measured, rel=TOLERANCE)
    assert found.kept < found.peak
    whole = dry_step(
        config, to_meta(pack), trained, attention="split", checkpointing=checkpointing, dtype=torch.float32
    )
    assert found == whole, "every layer adds the same"


@pytest.mark.parametrize("quantization", [pytest.param("int8", marks=pytest.mark.slow), "nf4"])
@pytest.mark.slow
def test_peak_of_a_real_step_with_quantised_weights(quantization: Quantization) -> None:
    measured, config, pack = measured_peak(COMPOSITION, True, quantization)
    used = {"checkpointing": True, "dtype": torch.float32, "lora": LoRAConfig()}
    found = step_activations(config, pack, COMPOSITION, **used, quantization=quantization)
    assert found.peak == pytest.approx(measured, rel=TOLERANCE)
    network = Network.of(config, COMPOSITION, LoRAConfig(), quantization)
    bits = {"int8": 8, "nf4": 4.5}[quantization]
    weights = sum(math.prod(network.shapes[name]) for name in network.quantized)
    scales = 32 * sum(network.shapes[name][0] for name in network.quantized) if quantization == "int8" else 0
    assert 8 * sum(network.quantized.values()) == bits * weights + scales
    plain, plan = Network.of(config, COMPOSITION, LoRAConfig()), Plan("sharded")
    saved = plain.state(plan).weights - network.state(plan).weights
    assert saved == 2 * weights - sum(network.quantized.values())
    assert network.count() == plain.count()


def test_kept_without_checkpointing_is_what_autograd_saves() -> None:
    """Saved tensors of the forward, each storage once, weights apart."""
    pack = make_pack(LARGE, LARGE)
    model = tiny_model(num_layers=LAYERS).train()
    set_trainable(model, COMPOSITION)
    clean = model.encode_images(pack)
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.nbytes():
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = flow_matching(model, pack, clean, torch.ones_like(clean))
        loss = result.squared_error.mean()
    expected = sum(storage.nbytes() for storage in saved.values())
    del result, loss
    found = step_activations(model.config, pack, COMPOSITION, checkpointing=False, dtype=torch.float32)
    assert found.kept == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.slow
def test_at_7b_checkpointing_keeps_a_layer_s_input_alone() -> None:
    config = bagel_7b()
    pack = typical_pack(config, PackingConfig())
    assert len(pack) == 26496
    stream = 28 * len(pack) * 3584 * 2
    on, off = (
        step_activations(config, pack, ("understanding", "generation"), attention="flex", checkpointing=c)
        for c in (True, False)
    )
    assert stream < on.kept < 1.2 * stream
    assert off.kept > 20 * on.kept
    assert 10e9 < on.peak < 18e9


@pytest.mark.parametrize("references", [1, 2, 4])
@pytest.mark.parametrize(
    ("config", "packing"),
    [
        (bagel_7b(), PackingConfig()),
        (bagel_7b(), PackingConfig(token_budget=12000, targets_per_sample=2)),
        (mini_photo(), PackingConfig()),
        (
            mini(),
            PackingConfig(
                token_budget=5200,
                vae_resize=ResizeLimits(max_size=16, min_size=16),
                vit_resize=ResizeLimits(max_size=16, min_size=16),
            ),
        ),
    ],
)
def test_a_typical_pack_fills_the_budget(config: SconeConfig, packing: PackingConfig, references: int) -> None:
    pack = typical_pack(config, packing, references)
    assert len(pack) == packing.token_budget
    images = [s for s in pack.splits if s.grid]
    assert len(images) == pack.num_samples * (2 * references + packing.targets_per_sample)


def test_labels_bring_their_logits() -> None:
    config = bagel_7b()
    config = dataclasses.replace(config, vit=dataclasses.replace(config.vit, num_layers=2))  # the others add nothing
    plain, labelled = (typical_pack(config, PackingConfig(), labels=count) for count in (0, 512))
    assert len(plain) == len(labelled) == 26496
    assert len(labelled.label_index) == 512
    with_text, without = (
        step_activations(config, pack, ("understanding",), attention="flex") for pack in (labelled, plain)
    )
    logits = 512 * config.decoder.vocab_size
    assert with_text.kept - without.kept > 2 * logits, "bfloat16 logits at least"


def test_a_budget_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="token_budget is 20, too small"):
        typical_pack(bagel_7b(), PackingConfig(token_budget=20))


def test_encoding_an_image() -> None:
    """The convolutional autoencoder, small, on real tensors."""
    config = AutoencoderConfig(base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1)
    autoencoder, image = build_autoencoder(config), torch.zeros(1, 3, 64, 64)
    with torch.no_grad(), LiveBytes() as live:
        live.ignore(*autoencoder.parameters(), image)
        autoencoder.encode(image)
    whole = SconeConfig(decoder=mini().decoder, vit=mini().vit, autoencoder=config)
    assert encode_bytes(whole, 64) == pytest.approx(live.peak, rel=TOLERANCE)


def test_layers_that_keep_their_activations_lie_between() -> None:
    model = tiny_model()
    pack = make_pack(LARGE, LARGE)
    used = {"attention": "split", "dtype": torch.float32}
    meta = to_meta(pack)
    full, none = (dry_step(model.config, meta, COMPOSITION, checkpointing=c, **used) for c in (True, False))
    half = dry_step(model.config, meta, COMPOSITION, checkpointing=True, layers_kept=2, **used)
    assert full.kept < half.kept < none.kept
    between = full.interpolate(none, 0.5)
    assert half.kept == pytest.approx(between.kept, rel=0.02)
    # The layers that keep theirs are freed before the others are recomputed, so the estimate errs high.
    assert full.peak < half.peak < between.peak < none.peak
