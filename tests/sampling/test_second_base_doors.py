"""What else takes a checkpoint of SenseNova-U1: pipeline, `predict`, quantisation, offload, the page; no `latents`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_helpers import pixels, write_jsonl, write_picture
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.app.reading import read
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.model.bridge import Bridge
from scone_pl.model.config import BridgeConfig
from scone_pl.model.quantized import Quantization
from scone_pl.sampling.memory import Saving, module_bytes, weight_bytes
from scone_pl.sampling.offload import Offload, offload
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.worlds.shapes.base import write_base

SIZE = ResizeLimits(max_size=16, min_size=16)
PACKING = PackingConfig(vae_resize=SIZE, vit_resize=SIZE)
CALL = {"num_inference_steps": 2, "seed": 1, "height": 16, "width": 24, "output_type": "latent"}
BRIDGE = BridgeConfig(source_layer=1, first_masked_layer=2, last_masked_layer=5, quantile=0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second") / "tiny"
    write_base(folder, preset="mini_neo")
    return folder


def pipeline_of(folder: Path, quantization: Quantization | None = None) -> SconePipeline:
    return SconePipeline(from_pretrained(folder, quantization=quantization), Tokenizer.from_folder(folder), PACKING)


def drawn(pipeline: SconePipeline) -> torch.Tensor:
    latents: torch.Tensor = pipeline("left", image=pixels(), bridge=BRIDGE, **CALL).images[0]
    return latents


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.05), ("nf4", 0.4)])
def test_quantised(folder: Path, kind: Quantization, error: float) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
    pipeline = pipeline_of(folder, kind)
    assert module_bytes(pipeline.model) == weight_bytes(pipeline.model.config, torch.float32, Saving(kind))
    expected = drawn(pipeline_of(folder))
    assert 0 < (drawn(pipeline) - expected).norm() / expected.norm() < error


@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_offload_changes_no_image(folder: Path, kind: Offload) -> None:
    pipeline = pipeline_of(folder)
    before = drawn(pipeline)
    offload(pipeline.model, kind, torch.device("cpu"))
    assert torch.equal(drawn(pipeline), before)


def test_the_page_counts_the_only_tokens_of_a_reference(folder: Path) -> None:
    pipeline = pipeline_of(folder)
    reading = read(pipeline, pipeline.prompts([[pixels(), pixels(seed=1)]], ["left"], 16, 16)[0])
    blocked = Bridge(BRIDGE, reading.pack).decide(reading.similarity[1]).blocked
    visible = reading.visible(BRIDGE)
    assert sum(one.tokens for one in visible) == int(reading.pack.reference_tokens.sum())
    assert sum(one.tokens - one.visible for one in visible) == int(blocked.sum()) > 0
    assert [one.weights.size for one in visible] == [one.tokens for one in visible]


def test_predict(folder: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "red.png")
    write_jsonl(tmp_path / "prompts.jsonl", [{"key": "a", "instruction": "left", "input_images": ["red.png"]}])
    sampling = {"num_inference_steps": 2, "height": 16, "width": 24}
    options = [part for name, value in sampling.items() for part in (f"--model.init_args.sampling.{name}", str(value))]
    config = ["--config", str(ROOT / "experiments/predict.yaml"), "--model.init_args.init_from", str(folder)]
    config += ["--data.predict", f"[{{path: '{tmp_path}/prompts.jsonl'}}]", "--data.num_workers", "0"]
    config += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.precision", "32-true"]
    assert main(["predict", *config, *options, "--output_dir", str(tmp_path / "out")]) == 0
    assert np.asarray(Image.open(tmp_path / "out/predictions/a.png")).shape == (16, 24, 3)


def test_there_are_no_latents_to_compute(folder: Path, mini_world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--config", str(ROOT / "experiments/neo/mini.yaml"), "--model.init_args.init_from", str(folder)]
    recipe += ["--data.train", f"[{{path: {mini_world}/data_shards/mini/refined_single}}]", "--chain", "null"]
    for command in (["latents", *recipe], ["fit", *recipe, "--data.latents", "true"]):
        assert main(command) == 2
        assert "this base model has no autoencoder, so there are no latents to compute" in capsys.readouterr().err
