"""Properties of the whole network that no golden number shows."""

from __future__ import annotations

import re

import pytest
import torch
from model_helpers import ONE_REFERENCE, TWO_REFERENCES, make_pack, tiny_model

from scone_pl.model.config import bagel_7b
from scone_pl.model.scone import Scone
from scone_pl.model.sequence import PackedSequence
from scone_pl.training.losses import flow_matching, text_cross_entropy
from scone_pl.training.parts import set_trainable


def run(model: Scone, pack: PackedSequence, seed: int = 0) -> torch.Tensor:
    """Velocities per target split, with noise by the index of the split within its sample."""
    clean = model.encode_images(pack)
    noise = torch.cat(
        [
            torch.randn(len(s.content), clean.shape[1], generator=torch.Generator().manual_seed(seed + len(s.content)))
            for s in pack.latent_splits
        ]
    )
    return flow_matching(model, pack, clean, noise).output.velocity


@torch.no_grad()
def test_samples_of_a_pack_do_not_see_each_other() -> None:
    model = tiny_model()
    first, second = ({**TWO_REFERENCES, "seed": 1}, {**ONE_REFERENCE, "seed": 2})
    alone = [run(model, make_pack(sample)) for sample in (first, second)]
    torch.testing.assert_close(run(model, make_pack(first, second)), torch.cat(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(model, make_pack(second, first)), torch.cat(alone[::-1]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_several_targets_on_one_context_equal_separate_samples() -> None:
    model = tiny_model()
    both = make_pack({**TWO_REFERENCES, "seed": 1, "targets": [(3, 4), (2, 2)]})
    result = run(model, both).split([12, 4])
    one = make_pack({**TWO_REFERENCES, "seed": 1, "targets": [(3, 4)]})
    torch.testing.assert_close(result[0], run(model, one), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_backends_agree() -> None:
    model, pack = (
        tiny_model(),
        make_pack(TWO_REFERENCES, ONE_REFERENCE, ONE_REFERENCE, {"text": 3, "targets": [(2, 2)]}),
    )
    velocities = {}
    for model.attention in ("dense", "split", "flex"):
        velocities[model.attention] = run(model, pack)
    torch.testing.assert_close(velocities["split"], velocities["dense"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(velocities["flex"], velocities["dense"], rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        model.language_model.model.activation_checkpointing = checkpointing
        run(model, make_pack(TWO_REFERENCES)).square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_a_frozen_expert_gets_no_gradient_but_passes_it_on() -> None:
    model = tiny_model().train()
    set_trainable(model, ["understanding"])
    run(model, make_pack(TWO_REFERENCES)).square().mean().backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient
    assert not any("_moe_gen" in n or n.startswith(("vit_model", "vae2llm")) for n in with_gradient)
    assert model.language_model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_text_labels_are_the_next_tokens() -> None:
    from model_helpers import SEQUENCE_FORMAT

    from scone_pl.model.builder import SequenceBuilder

    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    builder.add_text([7, 8])
    builder.add_text([9, 10, 11], loss=True)
    pack = builder.build()
    assert pack.label_index.tolist() == [4, 5, 6, 7]
    assert pack.label_ids.tolist() == [9, 10, 11, 2]
    model = tiny_model()
    output = model(pack, model.encode_images(pack), torch.zeros(0))
    probabilities = output.text_logits.log_softmax(-1)
    expected = -sum(probabilities[i, label] for i, label in enumerate([9, 10, 11, 2]))
    torch.testing.assert_close(text_cross_entropy(output, pack), expected)


def test_the_published_size_and_keys() -> None:
    with torch.device("meta"):
        model = Scone(bagel_7b())
    hidden, mlp, kv, vocab = 3584, 18944, 4 * 128, 152064
    expert = 2 * hidden * hidden + hidden + 2 * (hidden * kv + kv) + 2 * 128 + 3 * hidden * mlp + 2 * hidden
    decoder = 28 * 2 * expert + 2 * vocab * hidden + 2 * hidden
    counted = sum(p.numel() for n, p in model.named_parameters() if n.startswith("language_model"))
    assert counted == decoder
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(14.6e9, rel=0.01)
    patterns = [
        r"language_model\.model\.layers\.\d+\.self_attn\.[qkv]_proj(_moe_gen)?\.(weight|bias)",
        r"language_model\.model\.layers\.\d+\.self_attn\.o_proj(_moe_gen)?\.weight",
        r"language_model\.model\.layers\.\d+\.self_attn\.[qk]_norm(_moe_gen)?\.weight",
        r"language_model\.model\.layers\.\d+\.mlp(_moe_gen)?\.(gate|up|down)_proj\.weight",
        r"language_model\.model\.layers\.\d+\.(input|post_attention)_layernorm(_moe_gen)?\.weight",
        r"language_model\.model\.(embed_tokens|norm|norm_moe_gen)\.weight",
        r"language_model\.lm_head\.weight",
        r"vit_model\.vision_model\..+",
        r"connector\.fc[12]\.(weight|bias)",
        r"(vae2llm|llm2vae)\.(weight|bias)",
        r"time_embedder\.mlp\.[02]\.(weight|bias)",
        r"(latent|vit)_pos_embed\.pos_embed",
        r"autoencoder\.(encoder|decoder)\..+",
    ]
    keys = list(model.state_dict())
    matched = [next((p for p in patterns if re.fullmatch(p, key)), None) for key in keys]
    assert None not in matched
    assert set(matched) == set(patterns)
    assert len([k for k in keys if ".layers." in k and k.startswith("language_model")]) == 28 * 2 * 14
