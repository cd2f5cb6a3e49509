"""A tiny checkpoint folder and pictures for the tests of what people call."""

import io
import json
import math

import numpy as np
import torch
from PIL import Image

from scone_pl.checkpoints.model import save_pretrained
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.model.attention import DensePlan
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import AutoencoderConfig, BridgeConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.initialize import random_model

BRIDGE = BridgeConfig(source_layer=1, first_masked_layer=2, last_masked_layer=3, threshold=0.1)


def tiny_config(vocab_size, **decoder):
    """Latent tokens of 4 pixels, at most 8 a side: pictures of up to 32 pixels."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2}
    return SconeConfig(
        decoder=DecoderConfig(vocab_size=vocab_size, **(sizes | decoder)),
        vit=ViTConfig(
            hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, patch_size=4, positions_per_side=6
        ),
        autoencoder=AutoencoderConfig(kind="space_to_depth"),
        latent_positions_per_side=8,
    )


def tiny_model(seed=0, **decoder):
    """All parameters random, so that everything matters (a fresh model's velocity is 0)."""
    model = random_model(tiny_config(byte_tokenizer().vocab_size, **decoder), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
        parameter.data = parameter.data + 0.3 * noise if parameter.ndim == 1 else noise * 1.2
    return model.eval().requires_grad_(False)


def write_folder(folder):
    """A checkpoint folder that says it was trained with `BRIDGE`."""
    bridge = {name: getattr(BRIDGE, name) for name in BRIDGE.__dataclass_fields__}
    save_pretrained(tiny_model(), folder, training={"bridge": bridge, "mask_sampling": True, "steps": 0})
    byte_tokenizer().save(folder)
    return folder


def pixels(height=20, width=14, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_picture(file, **options):
    Image.fromarray(pixels(**options)).save(file)
    return file


def png_of(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def write_jsonl(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def image(rows, columns, seed):
    """(3, 4 * rows, 4 * columns) in [-1, 1]."""
    return torch.rand(3, 4 * rows, 4 * columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def dense_velocity(model, sequence_format, one, latents, t, *, bridge=None, plan=DensePlan, references=True, text=True):
    """A pass over the whole sequence of a prompt with an L x L mask."""
    builder = SequenceBuilder(sequence_format)
    builder.begin_sample()
    targets = one.targets or (None,) * len(one.references)
    for i, (vae, vit) in enumerate(one.references if references else ()):
        builder.add_vae(vae, reference=i, targets=targets[i])
        builder.add_vit(vit, reference=i, targets=targets[i])
    if text and one.text_ids is not None:
        builder.add_text(list(one.text_ids))
    builder.add_targets(torch.zeros(3, *one.size), [0.0])
    pack = builder.build()
    tokens = model.encode_images(pack).clone()
    tokens[pack.target_in_latents] = latents
    times = torch.zeros(len(pack.latent_splits))
    times[-1] = t
    return model(pack, tokens, times, bridge, plan(pack)).velocity
