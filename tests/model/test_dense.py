"""A decoder without separate experts: computes as two equal experts, has half the weights, and all parts know it."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from model_helpers import EVERYTHING, make_pack, noisy_inputs, tiny_model
from safetensors.torch import load_file, save_file

from scone_pl.checkpoints.model import from_pretrained, read_config, save_derived, save_pretrained
from scone_pl.checkpoints.tensor_files import TensorSource
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig, bagel_7b, mini, mini_dense
from scone_pl.model.experts import is_generation_parameter
from scone_pl.model.initialize import random_model
from scone_pl.model.lora import LoRAConfig, add_lora
from scone_pl.model.scone import Scone
from scone_pl.training.ema import EMA
from scone_pl.training.gradients import gradient_norms
from scone_pl.training.parts import Part, count_parameters, count_trainable, part_of, set_trainable
from scone_pl.training.stages import BridgeFormation, BridgeGuidance, Composition

SOFT = BridgeConfig(source_layer=0, first_masked_layer=1, last_masked_layer=3, threshold=0.0, mode="soft")
HARD = dataclasses.replace(SOFT, mode="hard")


def generation_name(name: str) -> str:
    """The published name of the generation expert's twin of one of the understanding expert's layer weights."""
    if name == "language_model.model.norm.weight":
        return "language_model.model.norm_moe_gen.weight"
    stem, layer, rest = name.partition(".layers.")
    number, *path = rest.split(".")
    depth = 0 if path[0] != "self_attn" else 1
    path[depth] += "_moe_gen"
    return f"{stem}{layer}{number}.{'.'.join(path)}"


def in_both(name: str) -> bool:
    """Whether both experts have one of these."""
    return name.startswith("language_model.model.") and "embed_tokens" not in name


def twins() -> tuple[Scone, Scone]:
    """A dense model, and one of two experts that both have its weights."""
    dense, experts = tiny_model(separate_experts=False), tiny_model(1)
    state = dict(dense.state_dict())
    state |= {generation_name(n): t for n, t in state.items() if in_both(n)}
    experts.load_state_dict(state)
    return dense, experts


@pytest.mark.parametrize("attention", ["split", "dense"])
@pytest.mark.parametrize("bridge", [None, HARD, SOFT], ids=["none", "hard", "soft"])
def test_it_is_two_equal_experts(attention: str, bridge: BridgeConfig | None) -> None:
    dense, experts = twins()
    pack = make_pack(*EVERYTHING)
    gradients = []
    outputs = []
    for model in (dense, experts):
        model.attention = attention
        output = model.train()(pack, *noisy_inputs(model, pack), bridge)
        (output.velocity.square().mean() + output.hidden.understanding.square().mean()).backward()
        outputs.append(output)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert outputs[0].velocity.equal(outputs[1].velocity)
    assert outputs[0].hidden.understanding.equal(outputs[1].hidden.understanding)
    if bridge is not None:
        assert outputs[0].bridge.similarity.equal(outputs[1].bridge.similarity)
    shared = [n for n in gradients[0] if in_both(n)]
    assert len(shared) == 4 * 14 + 1
    for name in shared:
        both = gradients[1][name] + gradients[1][generation_name(name)]
        torch.testing.assert_close(gradients[0][name], both, rtol=1e-5, atol=1e-6)
    for name in gradients[0].keys() - shared:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-5, atol=1e-6)


def test_it_has_half_the_layer_weights() -> None:
    with torch.device("meta"):
        model, both = Scone(mini_dense()), Scone(mini())
        config = bagel_7b()
        large = Scone(dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, separate_experts=False)))
    names = set(model.state_dict())
    assert names == {n for n in both.state_dict() if not is_generation_parameter(n)}
    assert 7.9e9 < sum(p.numel() for p in large.parameters()) < 8.4e9, "Qwen2.5-7B, ViT, autoencoder, connector"
    counts, of_both = count_parameters(model), count_parameters(both)
    assert "generation" not in counts
    assert counts == {part: n for part, n in of_both.items() if part != "generation"}


def test_random_weights_start_latents_as_the_generation_expert_starts() -> None:
    attention = random_model(mini_dense(), 0).language_model.model.layers[1].self_attn
    q, k = attention.q_proj.weight.flatten(), attention.k_proj.weight.flatten()
    assert torch.corrcoef(torch.stack([q, k]))[0, 1].item() == pytest.approx(0.7, abs=0.05)


def test_either_name_trains_the_one_decoder() -> None:
    model = tiny_model(separate_experts=False)
    results = []
    cases: list[list[Part]] = [["understanding"], ["generation"], ["understanding", "generation"]]
    for parts in cases:
        set_trainable(model, parts)
        results.append(count_trainable(model))
        parameters = [p for p in model.parameters() if p.requires_grad]
        assert len(torch.optim.AdamW(parameters).param_groups[0]["params"]) == len({id(p) for p in parameters})
    assert results[0] == results[1] == results[2] == {"understanding": count_parameters(model)["understanding"]}
    set_trainable(model, ["connector"])
    assert set(count_trainable(model)) == {"connector"}


@pytest.mark.parametrize("experts", [("understanding",), ("generation",), ("understanding", "generation", "connector")])
def test_either_name_gets_one_adapter(experts: Collection[Part]) -> None:
    model = tiny_model(separate_experts=False)
    add_lora(model.language_model.model.layers, LoRAConfig(rank=2), experts)
    set_trainable(model, experts, lora=True)
    trained = [n for n, p in model.named_parameters() if p.requires_grad and part_of(n) == "understanding"]
    assert len(trained) == 4 * 7 * 2
    pack = make_pack(*EVERYTHING)
    model.train()(pack, *noisy_inputs(model, pack)).velocity.square().mean().backward()
    norms = gradient_norms([(n, p) for n, p in model.named_parameters() if p.requires_grad], torch.device("cpu"))
    assert set(norms.groups) <= {"understanding", "connector"}
    plain = tiny_model(separate_experts=False)
    add_lora(plain.language_model.model.layers, LoRAConfig(rank=2), ["connector"])
    assert plain.state_dict().keys() == tiny_model(separate_experts=False).state_dict().keys()


def test_the_average_follows_the_one_decoder() -> None:
    model = tiny_model(separate_experts=False)
    set_trainable(model, ["generation"])
    ema = EMA(model.named_parameters(), 0.5)
    assert set(ema.average) == {n for n, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------- folders
def test_save_and_load(tmp_path: Path) -> None:
    dense, experts = twins()
    save_pretrained(dense, tmp_path / "dense")
    save_pretrained(experts, tmp_path / "experts")
    assert json.loads((tmp_path / "dense/llm_config.json").read_text())["separate_experts"] is False
    assert "separate_experts" not in json.loads((tmp_path / "experts/llm_config.json").read_text()), "as published"
    assert read_config(tmp_path / "dense") == dense.config
    results = from_pretrained(tmp_path / "dense").state_dict()
    assert results.keys() == dense.state_dict().keys() == load_file(tmp_path / "dense/model.safetensors").keys()
    assert all(results[name].equal(tensor) for name, tensor in dense.state_dict().items() if "pos_embed" not in name)


def _declare(folder: Path, value: object) -> None:
    file = folder / "llm_config.json"
    content = json.loads(file.read_text())
    content.pop("separate_experts", None)
    file.write_text(json.dumps(content if value is None else {**content, "separate_experts": value}))


def test_a_dense_decoder_takes_the_understanding_experts_weights_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = tmp_path / "start"
    experts = tiny_model()
    save_pretrained(experts, start)
    _declare(start, False)
    with caplog.at_level(logging.WARNING):
        model = from_pretrained(start)
    assert "the generation expert's 57 tensors are not read" in caplog.text
    assert model.language_model.model.norm.weight.equal(experts.language_model.model.norm.weight)
    # What training leaves is a dense folder without remnants.
    changed = {"vae2llm.bias": TensorSource.of(model.vae2llm.bias + 1)}
    save_derived(start, changed, tmp_path / "out", training={})
    assert not any(map(is_generation_parameter, load_file(tmp_path / "out/model.safetensors")))
    caplog.clear()
    assert from_pretrained(tmp_path / "out").vae2llm.bias.equal(model.vae2llm.bias + 1)
    assert not caplog.text


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    save_pretrained(tiny_model(separate_experts=False), folder)
    _declare(folder, None)
    with pytest.raises(UserError, match=r"missing .*_moe_gen.*, and 52 more; .*separate_experts: false") as error:
        from_pretrained(folder)
    assert "\n" not in str(error.value)
    _declare(folder, "no")
    with pytest.raises(UserError, match='separate_experts is "no", but only true or false'):
        from_pretrained(folder)
    _declare(folder, False)
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "vae2llm.bias"}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing vae2llm\.bias$"):
        from_pretrained(folder)


def test_a_dense_start_is_bagels_folder_with_another_config(bagel_folder: Path, tmp_path: Path) -> None:
    """As experiments/ablations/no_experts.yaml says: links to its files, and the key in llm_config.json."""
    dense = tmp_path / "dense"
    dense.mkdir()
    for file in bagel_folder.iterdir():
        (dense / file.name).symlink_to(file)
    (dense / "llm_config.json").unlink()
    shutil.copy(bagel_folder / "llm_config.json", dense)
    _declare(dense, False)
    for stage in (Composition, BridgeFormation, BridgeGuidance):
        model = stage(str(dense)).network.on_meta()
        decoder = {n: p for n, p in model.named_parameters() if n.startswith("language_model")}
        assert all(p.requires_grad for p in decoder.values()), "every stage trains the whole decoder"
        assert 7.5e9 < sum(p.numel() for p in decoder.values()) < 7.7e9
