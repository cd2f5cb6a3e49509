"""LoRA adapters for sampling: peft's own files loaded, weighted, fused, unloaded; in verbs; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import pixels, tiny_model, write_folder, write_jsonl, write_picture
from running import ROOT
from safetensors.torch import load_file, save_file

from scone_pl.__main__ import main
from scone_pl.checkpoints.adapters import AdapterConfig, adapter_identity, read_adapter
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.errors import UserError
from scone_pl.sampling.pipeline import SconePipeline

peft = pytest.importorskip("peft")
FAST = {"num_inference_steps": 2, "height": 16, "width": 24, "seed": 0, "output_type": "latent"}
TARGETS = r"language_model\.model\.layers\.\d+\.(self_attn\.[qv]_proj_moe_gen|mlp\.down_proj)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint") / "tiny")


def write_adapter(folder: Path, seed: int, **config) -> peft.PeftModel:
    """An adapter that peft itself made and saved; returns peft's model."""
    settings = {"r": 2, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": False} | config
    torch.manual_seed(seed)
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**settings))
    model.save_pretrained(str(folder))
    return model.eval()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    base = tmp_path_factory.mktemp("adapters")
    pattern = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"down_proj": 5}, "use_rslora": True}
    return {
        name: (base / name, write_adapter(base / name, seed, **config))
        for name, seed, config in (("one", 1, {}), ("two", 2, pattern))
    }


@pytest.fixture
def pipe(folder):
    pipeline = SconePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image(pipe) -> torch.Tensor:
    return pipe("a cat", image=pixels(seed=1), **FAST).images[0]


def of_peft(pipe, *models) -> torch.Tensor:
    """The image that peft's own modules give."""
    (model,) = models
    return image(SconePipeline(model.base_model.model.eval(), pipe.tokenizer))


@pytest.mark.parametrize("name", ["one", "two"])
def test_an_adapter_of_peft_gives_what_peft_computes(pipe, adapters, name):
    plain = image(pipe)
    file, model = adapters[name]
    pipe.load_lora_weights(file)
    torch.testing.assert_close(image(pipe), of_peft(pipe, model), atol=2e-4, rtol=0)
    assert not image(pipe).allclose(plain, atol=1e-2)
    pipe.unload_lora_weights()
    assert image(pipe).equal(plain)
    assert not pipe.get_list_adapters()


def test_what_training_writes_loads_in_peft_and_here(folder, tmp_path, adapters):
    """The layout of `results.py`, with the pattern over whole names that it writes."""
    from scone_pl.model.lora import LoRAConfig
    from scone_pl.training.results import adapter_config

    pairs = read_adapter(adapters["one"][0]).pairs
    tensors = {f"{m}.lora_{part}.weight": t for m, (a, b, _) in pairs.items() for part, t in (("A", a), ("B", b))}
    written = tmp_path / "adapter"
    written.mkdir()
    described = adapter_config(LoRAConfig(rank=2, alpha=6.0), list(tensors), str(folder))
    (written / "adapter_config.json").write_text(json.dumps(described))
    save_file({f"base_model.model.{n}": t for n, t in tensors.items()}, written / "adapter_model.safetensors")
    loaded = peft.PeftModel.from_pretrained(tiny_model(), str(written)).eval()
    pipe = SconePipeline.from_pretrained(folder)
    pipe.load_lora_weights(written)
    torch.testing.assert_close(image(pipe), of_peft(pipe, loaded), atol=2e-4, rtol=0)
    again = tmp_path / "again"
    loaded.save_pretrained(str(again))
    assert adapter_identity(str(again)) == adapter_identity(str(written))


def test_scales(pipe, adapters):
    plain = image(pipe)
    pipe.load_lora_weights(adapters["one"][0], adapter_name="one")
    one = image(pipe)
    pipe.load_lora_weights(adapters["two"][0], adapter_name="two")
    assert pipe.get_active_adapters() == pipe.get_list_adapters() == ["one", "two"]
    both = image(pipe)
    pipe.set_adapters(["one", "two"], adapter_weights=[1.0, 0.0])
    assert image(pipe).equal(one)
    assert pipe.get_active_adapters() == ["one"]
    pipe.set_adapters("one", 0.0)
    assert image(pipe).equal(plain)
    pipe.set_adapters(["one", "two"], [0.5, 0.25])
    assert not image(pipe).allclose(both, atol=1e-2)
    expected = tiny_model().state_dict()
    for name, weight in (("one", 0.5), ("two", 0.25)):
        for module, (a, b, factor) in read_adapter(adapters[name][0]).pairs.items():
            expected[f"{module}.weight"] += weight * factor * b @ a
    model = tiny_model()
    model.load_state_dict(expected)
    torch.testing.assert_close(image(pipe), image(SconePipeline(model, pipe.tokenizer)), atol=2e-4, rtol=0)
    pipe.disable_lora()
    assert image(pipe).equal(plain)
    pipe.enable_lora()
    pipe.delete_adapters("two")
    pipe.set_adapters("one")
    assert image(pipe).equal(one)


def test_fuse_and_unfuse(pipe, adapters, tmp_path):
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    pipe.load_lora_weights(adapters["one"][0])
    assert pipe.model.state_dict().keys() == before.keys()
    with pytest.raises(UserError, match="fuse_lora\\(\\) to write them"):
        pipe.save_pretrained(tmp_path / "refused")
    beside = image(pipe)
    pipe.fuse_lora()
    torch.testing.assert_close(image(pipe), beside, atol=2e-4, rtol=0)
    pipe.save_pretrained(tmp_path / "fused")
    torch.testing.assert_close(image(SconePipeline.from_pretrained(tmp_path / "fused")), beside, atol=2e-4, rtol=0)
    for call in (pipe.fuse_lora, lambda: pipe.set_adapters("default"), lambda: pipe.load_lora_weights("x")):
        with pytest.raises(UserError, match="call unfuse_lora"):
            call()
    pipe.unfuse_lora()
    assert all(tensor.equal(before[name]) for name, tensor in pipe.model.state_dict().items())
    assert image(pipe).equal(beside)
    pipe.fuse_lora(lora_scale=0.5)
    half = image(pipe)
    assert not half.allclose(beside, atol=1e-2)
    pipe.unload_lora_weights()
    assert image(pipe).equal(half), "fused weights stay"
    with pytest.raises(UserError, match="no adapter is fused"):
        pipe.unfuse_lora()


def test_adapters_follow_the_model(pipe, adapters):
    pipe.load_lora_weights(adapters["one"][0])
    pipe.to(torch.bfloat16)
    assert image(pipe).isfinite().all()


def test_merged_as_the_weights_are_read(folder, adapters, pipe):
    pipe.load_lora_weights(adapters["one"][0])
    pipe.set_adapters("default", 0.5)
    merged = SconePipeline.from_pretrained(folder, adapters=[AdapterConfig(path=str(adapters["one"][0]), scale=0.5)])
    torch.testing.assert_close(image(merged), image(pipe), atol=2e-4, rtol=0)


def test_generate_and_predict(folder, adapters, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png", seed=1)
    sizes = ["--num_inference_steps", "2", "--height", "16", "--width", "24"]
    common = ["generate", "--checkpoint", str(folder), "--image", "a.png", "--instruction", "a cat", *sizes]
    common += ["--dtype", "float32", "--device", "cpu"]
    lora = ["--lora", str(adapters["one"][0]), "--lora_scale", "0.5"]
    assert main([*common, "--output", "plain.png"]) == 0
    assert main([*common, "--output", "adapted.png", *lora]) == 0
    adapter = AdapterConfig(path=str(adapters["one"][0]), scale=0.5)
    pipe = SconePipeline.from_pretrained(folder, adapters=[adapter])
    expected = pipe("a cat", image="a.png", **{**FAST, "seed": 1234, "output_type": "pil"}).images[0]
    found = np.asarray(Image.open("adapted.png"))
    assert np.array_equal(found, np.asarray(expected))
    assert not np.array_equal(found, np.asarray(Image.open("plain.png")))
    assert main([*common, *lora, "--lora_scale", "0.1"]) == 2
    assert "--lora_scale: there are 2 for 1 --lora" in capsys.readouterr().err


@pytest.mark.slow
def test_predict_and_fit(folder, adapters, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png", seed=1)
    write_jsonl(tmp_path / "p.jsonl", [{"key": "k", "instruction": "a cat", "input_images": ["a.png"]}])
    recipe = ["--config", str(ROOT / "experiments/predict.yaml"), "--model.init_args.init_from", str(folder)]
    recipe += ["--trainer.precision", "32-true", "--trainer.accelerator", "cpu", "--output_dir", "out"]
    recipe += ["--data.predict", '[{"path": "p.jsonl"}]', "--model.init_args.sampling.num_inference_steps", "2"]
    adapter = ["--model.init_args.adapters", json.dumps([{"path": str(adapters["one"][0])}])]
    assert main(["predict", *recipe, *adapter]) == 0
    first = (tmp_path / "out/predictions/k.png").read_bytes()
    assert main(["predict", *recipe]) != 0
    assert "adapters was" in capsys.readouterr().err
    assert main(["predict", *recipe[:-4], *recipe[-4:], "--output_dir", "plain"]) == 0
    assert (tmp_path / "plain/predictions/k.png").read_bytes() != first
    assert main(["fit", "--config", str(ROOT / "experiments/mini/stage2.yaml"), *recipe[2:4], *adapter]) == 2
    assert "leave them out of fit" in capsys.readouterr().err


def damage(folder: Path, **changes):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


def rename(folder: Path, old: str, new: str):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name.replace(old, new): t for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def resize(folder: Path):
    tensors = load_file(folder / "adapter_model.safetensors")
    wide = {n: torch.ones(t.shape[0], t.shape[1] + 8) if "lora_A" in n else t for n, t in tensors.items()}
    save_file(wide, folder / "adapter_model.safetensors")


REFUSED = {
    "binds to no module of the model": lambda f: rename(f, "language_model", "transformer"),
    r"adapts .*layers\.9.*, which the model does not have": lambda f: rename(f, "layers.3", "layers.9"),
    r"of size \[\d+, \d+\], the model's is \[\d+, \d+\]": resize,
    "is no lora_A or lora_B of a linear map": lambda f: rename(f, "lora_A.weight", "lora_magnitude_vector"),
    "only LORA is read": lambda f: damage(f, peft_type="LOHA"),
    "use_dora is True": lambda f: damage(f, use_dora=True),
    "modules_to_save": lambda f: damage(f, modules_to_save=["connector"]),
    "its tensors have 2": lambda f: damage(f, r=8),
    "must be a number": lambda f: damage(f, lora_alpha="six"),
    "adapter_config.json is missing": lambda f: (f / "adapter_config.json").unlink(),
    "from safetensors only": lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
    "no such folder of an adapter": shutil.rmtree,
}


@pytest.mark.parametrize("message", REFUSED)
def test_an_adapter_that_does_not_fit_is_one_line(message, pipe, adapters, tmp_path):
    copy = shutil.copytree(adapters["one"][0], tmp_path / "copy")
    REFUSED[message](copy)
    before = image(pipe)
    with pytest.raises(UserError, match=message):
        pipe.load_lora_weights(copy)
    assert image(pipe).equal(before)
    with pytest.raises(UserError, match=message):
        from_pretrained(pipe.source, adapters=[AdapterConfig(path=str(copy))])


def test_bad_names_and_weights(pipe, adapters):
    file = adapters["one"][0]
    pipe.load_lora_weights(file, adapter_name="cat")
    for message, call in {
        "is loaded already": lambda: pipe.load_lora_weights(file, adapter_name="cat"),
        "give letters": lambda: pipe.load_lora_weights(file, adapter_name="a.b"),
        "is not loaded; loaded are: cat": lambda: pipe.set_adapters("dog"),
        "2 adapter_weights for 1": lambda: pipe.set_adapters("cat", [1.0, 2.0]),
        "adapter_weights": lambda: pipe.set_adapters("cat", float("nan")),
    }.items():
        with pytest.raises(UserError, match=message):
            call()
