"""Similarity of reference tokens with the instruction before and after every decoder layer, in both experts (Fig. 11).

No mask is applied: one clean forward pass over packs of bounded length. Similarities are computed while the pass runs,
so that no layer's states are kept: at 7B those of one pack would take 10 GB.

Shapes: L tokens, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scone_pl.data.packing import PackingConfig, PreparedSample, prepare_sample
from scone_pl.data.sample import Sample
from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.model.bridge import Similarity
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.experts import ByExpert
from scone_pl.model.network import Network
from scone_pl.model.sequence import PackedSequence, SequenceFormat, SplitKind

EXPERTS = ("understanding", "generation")
INPUTS = "inputs"
"""What the understanding expert's first layer reads: a bridge with `source_layer: -1` compares there."""
READ = (INPUTS, *EXPERTS)
PACK_TOKENS = 26496
"""Tokens of a pack, as in training at 7B (release: max_num_tokens)."""


class ImageMaps(NamedTuple):
    """How similar one reference image's tokens are to the instruction, after every layer and before the first."""

    sample: int
    image: int
    understanding: np.ndarray
    """(layers, rows, columns) float32, of the image's ViT tokens: what the bridge compares with its threshold."""
    generation: np.ndarray | None
    """(layers, rows, columns) float32, of its VAE tokens; another grid. None where references have none."""
    inputs: np.ndarray | None = None
    """(1, rows, columns) float32, of its ViT tokens as they enter the decoder."""


class LayerSimilarity(NamedTuple):
    """Similarities of a pack's tokens, float32 on the CPU."""

    understanding: Tensor
    """(layers, L)."""
    generation: Tensor
    """(layers, L)."""
    inputs: Tensor
    """(1, L): as `understanding`, before the first layer."""


@torch.no_grad()
def similarity_of_layers(model: Network, pack: PackedSequence, clean: Tensor) -> LayerSimilarity:
    """Of every layer, in each expert, and before the first.

    Understanding: of ViT tokens, the bridge's own with `pooling: mean`, the paper's. Generation: mean cosine of the
    generation expert's states of VAE tokens with the understanding expert's states of the instruction. Other tokens'
    values mean nothing.

    Args:
        model: any.
        pack: on its device.
        clean: its latent tokens, see `Network.encode_images`.
    """
    similarity, states_of_layers, before = Similarity(pack), [], []

    def compare_inputs(layer: nn.Module, inputs: Any) -> None:
        before.append(similarity(inputs[0]).cpu())

    def compare(layer: nn.Module, inputs: Any, states: ByExpert) -> None:
        states_of_layers.append(_by_expert(similarity, states))

    layers = model.language_model.model.layers
    hooks = [layers[0].register_forward_pre_hook(compare_inputs), *(x.register_forward_hook(compare) for x in layers)]
    try:
        model(pack, clean, torch.zeros(len(pack.latent_splits), device=pack.device))
    finally:
        for hook in hooks:
            hook.remove()
    understanding, generation = (torch.stack(of_expert) for of_expert in zip(*states_of_layers, strict=True))
    return LayerSimilarity(understanding, generation, torch.stack(before))


def _by_expert(similarity: Similarity, states: ByExpert) -> ByExpert:
    """(L,) each, from one layer's (U, D) and (N, D)."""
    pack, latent = similarity.pack, similarity.pack.latent_index
    own, words = (F.normalize(x.float(), dim=-1, eps=1e-8) for x in (states.generation, states.understanding))
    of_latents = (own * similarity.instruction_mean(words)[pack.sample_of_token[latent]]).sum(-1)
    generation = of_latents.new_ones(len(pack)).index_put((latent,), of_latents)
    return ByExpert(similarity(states.understanding).cpu(), generation.cpu())


def image_maps(pack: PackedSequence, similarity: LayerSimilarity) -> list[ImageMaps]:
    """The maps of all reference images of a pack, in its order, from `similarity_of_layers`.

    Every reference must have its ViT split, and its VAE split if the layout has those.
    """

    def grids(values: Tensor, kind: SplitKind) -> list[np.ndarray]:
        splits = pack.splits_of(kind)
        return [values[:, s.content.start : s.content.stop].unflatten(1, s.grid).numpy() for s in splits]

    splits = pack.splits_of(SplitKind.VIT)
    of_latents: Sequence[np.ndarray | None] = [None] * len(splits)
    if not pack.layout.single_stream:
        of_latents = grids(similarity.generation, SplitKind.VAE)
    of_inputs, understanding = (grids(x, SplitKind.VIT) for x in (similarity.inputs, similarity.understanding))
    maps = zip(splits, understanding, of_latents, of_inputs, strict=True)
    return [ImageMaps(split.sample, split.image or 0, own, other, before) for split, own, other, before in maps]


def read_images(
    model: Network,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    packing: PackingConfig,
    exchanged: Sequence[str] | None = None,
    tokens: int = PACK_TOKENS,
) -> Iterator[tuple[ImageMaps, ImageMaps | None]]:
    """The maps of every reference image, in order.

    Targets and answers are left out: no reference token sees them.

    Args:
        model: on any device.
        tokenizer: its own.
        samples: with references and instruction.
        packing: sizes to which images are brought.
        exchanged: another instruction for each sample; the second maps of each pair are those under it.
        tokens: maximum tokens of a pack; a longer sample is a pack by itself.
    """
    sequence_format, packing = model.config.sequence_format(tokenizer.special), packing.without_dropout()
    waiting: list[tuple[PreparedSample, ...]] = []  # own and exchanged instruction
    filled = 0
    for number, sample in enumerate(samples):
        plain = dataclasses.replace(sample, target=b"", answer="")
        own = prepare_sample(plain, sequence_format, tokenizer, packing, generator("layers", sample.key))
        variants: tuple[PreparedSample, ...] = (own,)
        if exchanged is not None:
            variants += (dataclasses.replace(own, ids=tokenizer.encode(exchanged[number])),)
        length = max(len(_pack(sequence_format, [variant])) for variant in variants)
        if waiting and filled + length > tokens:
            yield from _read(model, sequence_format, waiting, number - len(waiting))
            waiting, filled = [], 0
        waiting.append(variants)
        filled += length
    if waiting:
        yield from _read(model, sequence_format, waiting, len(samples) - len(waiting))


@torch.no_grad()
def _read(
    model: Network, sequence_format: SequenceFormat, waiting: list[tuple[PreparedSample, ...]], first: int
) -> list[tuple[ImageMaps, ImageMaps | None]]:
    """One pack's maps; its first sample is number `first`."""
    packs = [_pack(sequence_format, samples).to(model.device) for samples in zip(*waiting, strict=True)]
    clean = model.encode_images(packs[0])  # the instruction is no part of it
    own, *others = (
        [
            maps._replace(sample=first + maps.sample)
            for maps in image_maps(pack, similarity_of_layers(model, pack, clean))
        ]
        for pack in packs
    )
    return list(zip(own, others[0] if others else [None] * len(own), strict=True))


def _pack(sequence_format: SequenceFormat, samples: Sequence[PreparedSample]) -> PackedSequence:
    builder = SequenceBuilder(sequence_format)
    for sample in samples:
        sample.append_to(builder)
    return builder.build()
