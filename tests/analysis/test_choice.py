"""Layers chosen without labels, for all images or for each: criteria and scores against loops and known cases."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from layer_helpers import mini_samples

from scone_pl.analysis.choice import CHOICES, METRICS, best_layer, layer_choice
from scone_pl.analysis.criteria import CRITERIA, bimodality, concentration, largest_gap
from scone_pl.analysis.drawing import draw_histograms
from scone_pl.analysis.measures import BINS, TOKENS, histograms, measure
from scone_pl.analysis.report import choice_report
from scone_pl.analysis.similarity import ImageMaps
from scone_pl.data.sample import Candidate

GROUP = (
    Candidate(box=(0.0, 0.0, 0.5, 0.5), is_target=True, name="cat"),
    Candidate(box=(0.5, 0.0, 1.0, 0.75), is_target=False, name="dog"),
)
TARGETS = [(0, 0), (0, 1), (1, 0), (1, 1)]
OTHERS = [(row, column) for row in range(3) for column in (2, 3)]


def split_at_best(values):
    """(eta^2, threshold) by trying every split."""
    ordered, spread = sorted(values), np.var(values)
    shares = []
    for k in range(1, len(ordered)):
        low, high = ordered[:k], ordered[k:]
        between = len(low) * len(high) / len(ordered) ** 2 * (np.mean(low) - np.mean(high)) ** 2
        shares.append((between / spread, (low[-1] + high[0]) / 2))
    return max(shares)


def looped_gap(values):
    ordered = sorted(values)
    outer = len(ordered) // 10
    inner = ordered[outer : len(ordered) - outer]
    return max(b - a for a, b in itertools.pairwise(inner)) / (ordered[-1] - ordered[0])


def looped_concentration(values):
    weights = [math.exp(v / 0.1) for v in values]
    parts = [w / sum(weights) for w in weights]
    return 1 + sum(p * math.log(p) for p in parts) / math.log(len(values))


def test_criteria_against_loops():
    rng = np.random.default_rng(0)
    for layers in (rng.normal(0.3, 0.2, (3, 23)), rng.integers(4, size=(3, 9)) / 10):
        np.testing.assert_allclose(bimodality(layers), [split_at_best(row)[0] for row in layers])
        np.testing.assert_allclose(largest_gap(layers), [looped_gap(row) for row in layers])
        np.testing.assert_allclose(concentration(layers), [looped_concentration(row) for row in layers])


def test_criteria_of_known_cases():
    two_values = np.array([[0.9] * 3 + [0.1] * 5])
    assert bimodality(two_values) == pytest.approx([1.0])
    assert largest_gap(two_values) == pytest.approx([1.0])
    one_stands_out = np.array([[9.0] + [0.0] * 7])
    assert concentration(one_stands_out) == pytest.approx([1.0])
    normal, uniform = np.random.default_rng(0).normal(size=(1, 20_000)), np.linspace(0, 1, 20_000)[None]
    assert bimodality(normal) == pytest.approx([2 / math.pi], abs=0.01)
    assert bimodality(uniform) == pytest.approx([0.75], abs=0.01)
    for name, criterion in CRITERIA.items():
        for degenerate in (np.full((2, 7), np.float32(0.1), dtype=float), np.full((2, 1), 0.4)):
            np.testing.assert_allclose(criterion(degenerate), [0, 0], atol=1e-12, err_msg=name)


def readings_of(images):
    """Of (images, layers, 4, 4) similarities; all but the last image have the boxes of `GROUP`."""
    sample = mini_samples(1)[0]
    samples = [dataclasses.replace(sample, candidates=(GROUP,)) for _ in images[:-1]]
    samples.append(dataclasses.replace(sample, candidates=None))
    changed = np.random.default_rng(1).random(images.shape)
    pairs = [
        (ImageMaps(i, 0, own, None), ImageMaps(i, 0, other, None))
        for i, (own, other) in enumerate(zip(images, changed, strict=True))
    ]
    return measure(pairs, samples)["understanding"]


def looped_scores(images, chosen):
    """Mean AUROC; precision and recall over all tokens at Otsu's threshold of each image's layer."""
    areas, kept_targets, kept_others = [], 0, 0
    for maps, layer in zip(images, chosen, strict=True):
        values = maps[layer]
        pairs = [(values[t] > values[o]) + 0.5 * (values[t] == values[o]) for t in TARGETS for o in OTHERS]
        areas.append(np.mean(pairs))
        threshold = split_at_best(values.ravel())[1]
        kept_targets += sum(values[t] >= threshold for t in TARGETS)
        kept_others += sum(values[o] >= threshold for o in OTHERS)
    recall = kept_targets / (len(TARGETS) * len(images))
    return {"auroc": np.mean(areas), "precision": kept_targets / (kept_targets + kept_others), "recall": recall}


def test_choices_against_loops():
    images = np.random.default_rng(0).random((9, 5, 4, 4))
    images[:, 4, :2, :2] += 2  # the last layer separates perfectly, but none is left behind it
    readings = readings_of(images)
    choice = layer_choice(readings)
    assert tuple(choice) == CHOICES
    values = {name: np.array([r.criteria[name] for r in readings]) for name in CHOICES[1:]}
    values["labels"] = np.array([r.separation.auroc for r in readings[:-1]])
    for name, of_images in values.items():
        fixed = int(np.argmax(of_images[:, :4].mean(0)))
        chosen = {"set": [fixed] * 8, "image": [int(np.argmax(one[:4])) for one in of_images[:8]]}
        for way, layers in chosen.items():
            found = choice[name][way]
            assert found["layers"] == [layers.count(i) for i in range(5)]
            for score, value in looped_scores(images[:-1], layers).items():
                assert found[score] == pytest.approx(value), (name, way, score)
                scale = 1 if score == "auroc" else 100
                assert METRICS[f"{score}_{name}_{way}"]({"layer_choice": choice}) == pytest.approx(scale * value)
    oracle = choice["labels"]["image"]["auroc"]
    assert all(oracle >= ways[way]["auroc"] for ways in choice.values() for way in ways)
    assert all(math.isnan(read({"tasks": {}})) for read in METRICS.values())


def test_without_boxes_or_exchanged_instructions_less_is_chosen():
    images = np.random.default_rng(0).random((2, 3, 4, 4))
    readings = readings_of(images)
    assert choice_report(readings[1:]) == {}
    for reading in readings:
        del reading.criteria["sensitivity"]
    assert tuple(layer_choice(readings)) == CHOICES[:-1]


def test_histograms_count_every_token_once():
    images = np.random.default_rng(0).uniform(-0.4, 0.7, (4, 3, 4, 4))
    images[0, 1, 0, 0] = 1.0  # belongs to the last bin
    readings = readings_of(images)
    found = histograms(readings, 1)
    assert (found["layer"], found["edges"][-1]) == (1, 1.0)
    width = 2 / BINS
    for name, tokens in (("target", TARGETS), ("others", OTHERS)):
        values = np.array([maps[1][t] for maps in images[:-1] for t in tokens])
        assert sum(found[name]) == len(values)
        for low, count in zip(found["edges"][:-1], found[name], strict=True):
            last = low + width > 1 - 1e-9
            assert count == ((values >= low) & (last | (values < low + width))).sum()
    assert sum(found["background"]) == 3 * (16 - len(TARGETS) - len(OTHERS))
    assert found["background"][-1] == 0
    assert choice_report(readings)["histograms"]["layer"] == best_layer(
        np.mean([r.separation.auroc for r in readings[:-1]], axis=0)
    )


def test_drawn_bins_are_merged_and_add_up(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr("scone_pl.analysis.drawing.write_figure", lambda figure, file, dpi: figures.append(figure))
    counts = np.zeros((3, 100), dtype=int)
    counts[0, 90:93], counts[1, :3] = 5, 2
    edges = np.linspace(-0.5, 0.5, 101)
    histogram = {"layer": 2, "edges": edges.tolist(), **dict(zip(TOKENS, counts.tolist(), strict=True))}
    draw_histograms({"(c')": histogram, "": histogram}, tmp_path / "none.png")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["(c'), layer 2", "layer 2"]
    target, others, background = (patch.get_data() for patch in figure.axes[0].patches[1::2])
    assert len(target.values) == 34
    np.testing.assert_allclose(target.edges[[0, 1, -1]], [-0.5, -0.47, 0.5])
    assert (target.values.sum(), target.values[30], others.values[0], background.values.max()) == (100, 100, 100, 0)
