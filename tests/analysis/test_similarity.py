"""Maps and measures of all layers against loops over tokens, one sample and one instruction at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from layer_helpers import mini_samples

from scone_pl.analysis.measures import QUANTILES, exchanged, measure
from scone_pl.analysis.report import report_of
from scone_pl.analysis.similarity import EXPERTS, INPUTS, read_images
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.packing import PackingConfig, add_sample
from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SplitKind
from scone_pl.worlds.shapes.base import write_base


@pytest.fixture(scope="module", params=["mini", "mini_dense"])
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers") / request.param
    write_base(folder, preset=request.param)
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    return model, tokenizer, PackingConfig.for_inference(model.config.sequence_format(tokenizer.special))


def looped_maps(opened, sample):
    """Per reference image expert -> (layers, rows, columns), each cosine by itself; the target takes part, unseen."""
    model, tokenizer, packing = opened
    builder = SequenceBuilder(model.config.sequence_format(tokenizer.special))
    add_sample(builder, sample, tokenizer, packing, generator(0))
    pack = builder.build()
    states, inputs = [], []
    layers = model.language_model.model.layers
    before = layers[0].register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    hooks = [layer.register_forward_hook(lambda module, inputs, out: states.append(out)) for layer in layers]
    with torch.no_grad():
        model(pack, model.encode_images(pack), torch.zeros(len(pack.latent_splits)))
    for hook in (*hooks, before):
        hook.remove()
    (text,) = pack.splits_of(SplitKind.TEXT)
    found = []
    for image in range(len(sample.references)):
        maps = {}
        for expert, kind in zip(EXPERTS, (SplitKind.VIT, SplitKind.VAE), strict=True):
            (split,) = [s for s in pack.splits_of(kind) if s.image == image]
            maps[expert] = np.zeros((len(states), *split.grid))
            for layer, state in enumerate(states):
                merged = torch.zeros(len(pack), state.understanding.shape[1], dtype=torch.float64)
                merged[pack.understanding_index] = state.understanding.double()
                merged[pack.latent_index] = state.generation.double()
                for place, token in enumerate(split.content):
                    cosines = torch.cosine_similarity(merged[token, None], merged[text.start : text.stop], dim=-1)
                    maps[expert][layer].flat[place] = cosines.mean()
        (split,) = [s for s in pack.splits_of(SplitKind.VIT) if s.image == image]
        merged = torch.zeros(len(pack), inputs[0].shape[1])
        merged[pack.understanding_index] = inputs[0]
        cosines = [
            torch.cosine_similarity(merged[t, None], merged[text.start : text.stop], dim=-1) for t in split.content
        ]
        maps[INPUTS] = torch.stack([c.mean() for c in cosines]).reshape(1, *split.grid).numpy()
        found.append(maps)
    return found


def looped_report(maps, changed, groups):
    """One expert's measures from lists, an image each: (layers, rows, columns), the same exchanged, subjects."""
    layers, labelled, pooled = len(maps[0]), [], [[] for _ in maps[0]]
    for values, group in zip(maps, groups, strict=True):
        if len({c.is_target for c in group}) < 2:
            continue
        rows, columns = values.shape[1:]
        inside = {True: [], False: []}
        for row, column in np.ndindex(rows, columns):
            for c in group:
                left, top, right, bottom = c.box
                if left <= (column + 0.5) / columns < right and top <= (row + 0.5) / rows < bottom:
                    inside[c.is_target].append((row, column))
        targets, others = ([[float(values[i][p]) for p in inside[m]] for i in range(layers)] for m in (True, False))
        labelled.append(
            {
                "auroc": [
                    np.mean([(a > b) + (a == b) / 2 for a in targets[i] for b in others[i]]) for i in range(layers)
                ],
                "gap": [np.mean(targets[i]) - np.mean(others[i]) for i in range(layers)],
            }
        )
        for i in range(layers):
            pooled[i] += targets[i] + others[i]
    mean = {name: np.mean([one[name] for one in labelled], axis=0) for name in ("auroc", "gap")}
    change = []
    for one, other in zip(maps, changed, strict=True):
        parts = [(a - a.mean(), b - b.mean()) for a, b in zip(one, other, strict=True)]
        change.append([((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum()) for a, b in parts])
    quantiles = [[np.mean([np.quantile(m[i], q) for m in maps]) for q in QUANTILES] for i in range(layers)]
    effect = mean["gap"] / [np.std(values) for values in pooled]
    return {**mean, "effect": effect, "sensitivity": np.mean(change, axis=0), "all": quantiles}


def test_everything_against_loops(opened):
    samples = mini_samples(3)
    others = exchanged([s.instruction for s in samples])
    own = [maps for s in samples for maps in looped_maps(opened, s)]
    swapped = [dataclasses.replace(s, instruction=o) for s, o in zip(samples, others, strict=True)]
    changed = [maps for s in swapped for maps in looped_maps(opened, s)]
    groups = [group for s in samples for group in s.candidates]
    model, tokenizer, packing = opened
    pairs = list(read_images(model, tokenizer, samples, packing, others))
    assert [(m.sample, m.image) for m, _ in pairs] == [
        (i, j) for i, s in enumerate(samples) for j in range(len(s.references))
    ]
    for (maps, other), one, two in zip(pairs, own, changed, strict=True):
        for expert in (*EXPERTS, INPUTS):
            np.testing.assert_allclose(getattr(maps, expert), one[expert], atol=1e-5)
            np.testing.assert_allclose(getattr(other, expert), two[expert], atol=1e-5)
    report = report_of(measure(pairs, samples))
    assert report["labelled_images"] == sum(len({c.is_target for c in group}) == 2 for group in groups) > 6
    assert report["images"] == len(groups)
    for expert in (*EXPERTS, INPUTS):
        expected = looped_report([m[expert] for m in own], [m[expert] for m in changed], groups)
        found = report["experts"][expert]
        for name in ("gap", "sensitivity"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        np.testing.assert_allclose(found["auroc"], expected["auroc"], atol=0.02)  # near ties may turn
        np.testing.assert_allclose(found["effect"], expected["effect"], atol=1e-3)
        np.testing.assert_allclose(found["quantiles"]["all"], expected["all"], atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 130])
def test_several_packs_give_the_same_as_one(opened, tokens):
    samples = mini_samples(2)
    others = exchanged([s.instruction for s in samples])
    model, tokenizer, packing = opened
    lengths = []
    hook = model.language_model.model.layers[0].register_forward_hook(
        lambda module, inputs, out: lengths.append(len(out.understanding) + len(out.generation))
    )
    one = list(read_images(model, tokenizer, samples, packing, others))
    assert len(lengths) == 2
    many = list(read_images(model, tokenizer, samples, packing, others, tokens))
    hook.remove()
    if tokens == 1:
        assert len(lengths) == 2 + 2 * len(samples)
    else:
        assert 4 < len(lengths) < 2 + 2 * len(samples)
        assert max(lengths[2:]) <= tokens
    for a, b in zip(one, many, strict=True):
        for maps, again in zip(a, b, strict=True):
            assert maps[:2] == again[:2]
            for expert in EXPERTS:
                np.testing.assert_allclose(getattr(maps, expert), getattr(again, expert), atol=1e-5)
