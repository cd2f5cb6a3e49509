"""Tiny models and random packs shared by the tests of the model, the generation and the checkpoints."""

import math
import random

import torch

from scone_pl.model.attention import SplitPlan
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.config import AutoencoderConfig, DecoderConfig, SconeConfig, ViTConfig
from scone_pl.model.initialize import random_model
from scone_pl.model.sequence import SequenceFormat, SpecialTokens

SPECIAL = SpecialTokens(begin_text=1, end_text=2, start_image=3, end_image=4)
SEQUENCE_FORMAT = SequenceFormat(
    special=SPECIAL, latent_stride=4, latent_positions_per_side=8, vit_patch_size=4, vit_positions_per_side=8
)


def tiny_config(**decoder):
    sizes = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    return SconeConfig(
        decoder=DecoderConfig(**(sizes | decoder)),
        vit=ViTConfig(
            hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, patch_size=4, positions_per_side=8
        ),
        autoencoder=AutoencoderConfig(kind="space_to_depth"),
        latent_positions_per_side=8,
    )


def tiny_model(seed=0, **decoder):
    """`random_model` starts with velocity 0 and biases 0; here everything is random, so that everything matters."""
    model = random_model(tiny_config(**decoder), seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1])
        parameter.data = parameter.data + 0.3 * noise if parameter.ndim == 1 else noise * 1.5
    return model.eval()


def random_image(rows, columns, seed, stride=4):
    """(3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, rows * stride, columns * stride, generator=generator) * 2 - 1


def add_sample(builder, *, references=(), text=None, targets=(), seed=0, key=""):
    """`references`: per image the grids (vae, vit), each (rows, columns) or None = dropped; `targets`: grids."""
    builder.begin_sample(key)
    for number, (vae, vit) in enumerate(references):
        if vae is None:
            builder.skip_image()
        else:
            builder.add_vae(random_image(*vae, seed + 10 * number), reference=number)
        if vit is None:
            builder.skip_image()
        else:
            builder.add_vit(random_image(*vit, seed + 10 * number + 1), reference=number)
    if text is not None:
        builder.add_text([5 + (seed + 3 * i) % 27 for i in range(text)])
    for number, grid in enumerate(targets):
        builder.add_targets(random_image(*grid, seed + 100 + number), [0.3 - 0.5 * number + 0.1 * seed])


def make_pack(*samples, sequence_format=SEQUENCE_FORMAT):
    """A pack of samples, each the keyword arguments of `add_sample`."""
    builder = SequenceBuilder(sequence_format)
    for number, sample in enumerate(samples):
        add_sample(builder, **({"seed": number, "key": f"s{number}"} | sample))
    return builder.build()


TWO_REFERENCES = {"references": [((2, 3), (3, 2)), ((3, 3), (2, 4))], "text": 5, "targets": [(3, 4)]}
ONE_REFERENCE = {"references": [((3, 2), (2, 3))], "text": 4, "targets": [(2, 4)]}
TEXT_TO_IMAGE = {"text": 3, "targets": [(2, 3)]}
NO_TEXT = {"references": [((2, 2), (2, 2))], "targets": [(2, 2)]}
TEXT_ONLY = {"text": 6}
SEVERAL_TARGETS = {"references": [((2, 2), (3, 3))], "text": 3, "targets": [(2, 2), (3, 2), (2, 2)]}
EVERYTHING = (TWO_REFERENCES, ONE_REFERENCE, TEXT_TO_IMAGE, NO_TEXT, TEXT_ONLY, SEVERAL_TARGETS)


def random_layout(rng: random.Random, long_text=False):
    """A random sample: 0-3 references with dropped halves, perhaps a text, 0-3 targets; never empty."""

    def grid():
        return rng.randint(1, 5), rng.randint(1, 5)

    references = [tuple(grid() if rng.random() < 0.85 else None for _ in range(2)) for _ in range(rng.randint(0, 3))]
    text = rng.randint(300, 600) if long_text else rng.randint(0, 9)
    return {
        "references": references,
        "text": text if rng.random() < 0.8 or long_text else None,
        "targets": [grid() for _ in range(rng.randint(1, 3))],
        "seed": rng.randrange(1000),
    }


def random_pack(seed):
    """3-6 random samples; some twice in a row, so that samples are batched; one long text."""
    rng = random.Random(seed)
    groups = []
    for _ in range(rng.randint(2, 4)):
        layout = random_layout(rng)
        groups.append([layout | {"seed": rng.randrange(1000)} for _ in range(rng.randint(1, 3))])
    groups.append([random_layout(rng, long_text=True)])
    groups.append([{"text": rng.randint(300, 600)}])
    rng.shuffle(groups)
    return make_pack(*(sample for group in groups for sample in group))


def random_blocked(pack, seed, fraction):
    """(L,) bool: a random fraction of the reference tokens."""
    generator = torch.Generator().manual_seed(seed)
    return pack.reference_tokens & (torch.rand(len(pack), generator=generator) < fraction)


def noisy_inputs(model, pack, seed=0):
    """Latents and timesteps of a training pass."""
    from scone_pl import flow

    clean = model.encode_images(pack)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    times = flow.timesteps_from_logits(pack.timestep_logits)
    return flow.add_noise(clean, noise, pack.expand_latent_splits(times)), times


class ComposedPlan(SplitPlan):
    """As on devices other than the CPU."""

    def __call__(self, q, k, v, layer):
        return self.composed(q, k, v)
