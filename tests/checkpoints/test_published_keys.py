"""A folder that is written here holds the published model's tensors: those names, those shapes, nothing else.

So the code of BAGEL and Scone and servers that know BAGEL load it as they load the published one (docs/serving.md).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from running import ROOT

from scone_pl.checkpoints.model import read_config, save_derived, save_pretrained
from scone_pl.checkpoints.tensor_files import TensorSource
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.model.config import AutoencoderConfig
from scone_pl.model.initialize import random_model
from scone_pl.model.vae import FluxAutoencoder

GOLDEN = ROOT / "tests/golden/parity"
"""Weights that the published implementation wrote, of a small model."""
PUBLISHED_TENSORS = 1467
"""Of ByteDance-Seed/BAGEL-7B-MoT, as vLLM-Omni counts them when it loads that folder."""
EXPERT = "{,_moe_gen}"
LAYER = "language_model.model.layers.{0..27}"
SIGLIP = "vit_model.vision_model"
BAGEL_7B = f"""
language_model.model.embed_tokens.weight 152064 3584
language_model.lm_head.weight 152064 3584
language_model.model.norm{EXPERT}.weight 3584
{LAYER}.{{input,post_attention}}_layernorm{EXPERT}.weight 3584
{LAYER}.self_attn.q_proj{EXPERT}.weight 3584 3584
{LAYER}.self_attn.{{k,v}}_proj{EXPERT}.weight 512 3584
{LAYER}.self_attn.q_proj{EXPERT}.bias 3584
{LAYER}.self_attn.{{k,v}}_proj{EXPERT}.bias 512
{LAYER}.self_attn.o_proj{EXPERT}.weight 3584 3584
{LAYER}.self_attn.{{q,k}}_norm{EXPERT}.weight 128
{LAYER}.mlp{EXPERT}.{{gate,up}}_proj.weight 18944 3584
{LAYER}.mlp{EXPERT}.down_proj.weight 3584 18944
{SIGLIP}.embeddings.patch_embedding.weight 1152 588
{SIGLIP}.embeddings.patch_embedding.bias 1152
{SIGLIP}.embeddings.position_embedding.weight 4900 1152
{SIGLIP}.encoder.layers.{{0..25}}.layer_norm{{1,2}}.{{weight,bias}} 1152
{SIGLIP}.encoder.layers.{{0..25}}.self_attn.{{q,k,v,out}}_proj.weight 1152 1152
{SIGLIP}.encoder.layers.{{0..25}}.self_attn.{{q,k,v,out}}_proj.bias 1152
{SIGLIP}.encoder.layers.{{0..25}}.mlp.fc1.weight 4304 1152
{SIGLIP}.encoder.layers.{{0..25}}.mlp.fc1.bias 4304
{SIGLIP}.encoder.layers.{{0..25}}.mlp.fc2.weight 1152 4304
{SIGLIP}.encoder.layers.{{0..25}}.mlp.fc2.bias 1152
{SIGLIP}.post_layernorm.{{weight,bias}} 1152
connector.fc1.weight 3584 1152
connector.fc2.weight 3584 3584
connector.fc{{1,2}}.bias 3584
vae2llm.weight 3584 64
vae2llm.bias 3584
llm2vae.weight 64 3584
llm2vae.bias 64
time_embedder.mlp.0.weight 3584 256
time_embedder.mlp.2.weight 3584 3584
time_embedder.mlp.{{0,2}}.bias 3584
latent_pos_embed.pos_embed 4096 3584
vit_pos_embed.pos_embed 4900 3584
"""


def _alternatives(text: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        return [str(number) for number in range(int(span[1]), int(span[2]) + 1)]
    return text.split(",")


def expanded(pattern: str) -> Iterator[str]:
    """Names of a pattern with braces, as a shell expands them."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    for chosen in product(*map(_alternatives, parts[1::2])):
        yield "".join(text + choice for text, choice in zip(parts[::2], (*chosen, ""), strict=True))


def published_7b() -> dict[str, tuple[int, ...]]:
    rows = [line.split() for line in BAGEL_7B.split("\n") if line]
    return {name: tuple(map(int, shape)) for pattern, *shape in rows for name in expanded(pattern)}


def _convolution(name: str, inputs: int, outputs: int, side: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    found = _norm(f"{name}.norm1", inputs) | _convolution(f"{name}.conv1", inputs, outputs)
    found |= _norm(f"{name}.norm2", outputs) | _convolution(f"{name}.conv2", outputs, outputs)
    return found | (_convolution(f"{name}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {})


def published_autoencoder() -> dict[str, tuple[int, ...]]:
    """FLUX's `ae.safetensors`."""
    found = _convolution("encoder.conv_in", 3, 128) | _convolution("encoder.conv_out", 512, 32)
    found |= _convolution("decoder.conv_in", 16, 512) | _convolution("decoder.conv_out", 128, 3)
    found |= _norm("encoder.norm_out", 512) | _norm("decoder.norm_out", 128)
    for side in ("encoder", "decoder"):
        found |= _block(f"{side}.mid.block_1", 512, 512) | _block(f"{side}.mid.block_2", 512, 512)
        found |= _norm(f"{side}.mid.attn_1.norm", 512)
        for name in ("q", "k", "v", "proj_out"):
            found |= _convolution(f"{side}.mid.attn_1.{name}", 512, 512, 1)
    for level, (inputs, outputs) in enumerate([(128, 128), (128, 256), (256, 512), (512, 512)]):
        found |= _block(f"encoder.down.{level}.block.0", inputs, outputs)
        found |= _block(f"encoder.down.{level}.block.1", outputs, outputs)
        if level < 3:
            found |= _convolution(f"encoder.down.{level}.downsample.conv", outputs, outputs)
    for level, (inputs, outputs) in enumerate([(256, 128), (512, 256), (512, 512), (512, 512)]):
        found |= _block(f"decoder.up.{level}.block.0", inputs, outputs)
        found |= _block(f"decoder.up.{level}.block.1", outputs, outputs)
        found |= _block(f"decoder.up.{level}.block.2", outputs, outputs)
        if level > 0:
            found |= _convolution(f"decoder.up.{level}.upsample.conv", outputs, outputs)
    return found


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a safetensors file, read without the library that wrote it."""
    with file.open("rb") as stream:
        content = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    content.pop("__metadata__", None)
    return {name: tuple(entry["shape"]) for name, entry in content.items()}


def test_names_and_shapes_at_7b(bagel_folder: Path) -> None:
    expected = published_7b()
    assert header(bagel_folder / "ema.safetensors") == expected
    with torch.device("meta"):
        autoencoder = FluxAutoencoder(AutoencoderConfig())
    assert {n: tuple(t.shape) for n, t in autoencoder.state_dict().items()} == published_autoencoder()
    assert len(expected) + len(published_autoencoder()) == PUBLISHED_TENSORS


def test_a_written_and_an_exported_folder_have_the_published_implementations_tensors(tmp_path: Path) -> None:
    written, exported = tmp_path / "written", tmp_path / "exported"
    model = random_model(read_config(GOLDEN), 0)
    save_pretrained(model, written)
    byte_tokenizer().save(written)
    config = {"model_type": "bagel", "architectures": ["BagelForConditionalGeneration"]}
    (written / "config.json").write_text(json.dumps(config))
    (written / "preprocessor_config.json").write_text("{}")
    name = "language_model.model.layers.3.mlp_moe_gen.up_proj.weight"
    save_derived(written, {name: TensorSource.of(model.state_dict()[name] + 1)}, exported, training={"steps": 1})
    for folder in (written, exported):
        assert header(folder / "model.safetensors") == header(GOLDEN / "model.safetensors")
        assert header(folder / "ae.safetensors") == header(GOLDEN / "ae.safetensors")
    # What servers read besides: it goes along where the start has it.
    for file in ("config.json", "preprocessor_config.json", "llm_config.json", "vit_config.json", "tokenizer.json"):
        assert (exported / file).read_bytes() == (written / file).read_bytes()
