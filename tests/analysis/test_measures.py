"""What a number means, on arrays whose answer is known."""

import dataclasses

import numpy as np
import pytest
from layer_helpers import mini_samples

from scone_pl.analysis.choice import best_layer
from scone_pl.analysis.measures import auroc, exchanged, measure, sensitivity, subjects_of, summary
from scone_pl.analysis.similarity import ImageMaps
from scone_pl.data.sample import Candidate

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def sample_with(*candidates):
    groups = (tuple(Candidate(box=box, is_target=is_target, name=name) for box, is_target, name in candidates),)
    return dataclasses.replace(mini_samples(1)[0], candidates=groups)


def maps_of(*layers):
    values = np.array(layers, dtype=np.float32)
    return ImageMaps(0, 0, values, values)


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.integers(5, size=7).astype(float), rng.integers(5, size=4).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in one for b in other]
    assert auroc(one, other) == pytest.approx(np.mean(pairs))


def test_sensitivity_sees_the_instruction_and_nothing_else():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40, 40))
    assert sensitivity(one, one + 3.0) == pytest.approx(0.0, abs=1e-9)
    assert sensitivity(one, other) == pytest.approx(1.0, abs=0.1)
    assert sensitivity(one, -one) == pytest.approx(2.0)


def test_instructions_are_exchanged_for_the_next_that_differs():
    assert exchanged(["a", "b", "b", "c"]) == ["b", "c", "c", "a"]
    assert exchanged(["a", "b", "a"]) == ["b", "a", "b"]
    assert exchanged(["a", "a"]) is None
    assert exchanged(["a"]) is None


def test_the_very_last_layer_is_never_chosen():
    assert best_layer([0.1, 0.3, 0.2, 0.9]) == 1
    assert best_layer([0.1]) == 0


def test_background_boxes_and_images_without_distractors_are_no_labels():
    known = sample_with((LEFT, True, "cat"), (RIGHT, False, "dog"))
    assert len(subjects_of(known, 0)) == 2
    assert subjects_of(sample_with((LEFT, True, "cat"), (RIGHT, False, "background")), 0) == ()
    assert subjects_of(dataclasses.replace(known, candidates=None), 0) == ()
    assert subjects_of(dataclasses.replace(known, candidates=((),)), 0) == ()


def test_tokens_in_boxes_of_both_kinds_count_as_neither():
    maps = maps_of([[3, 1, 0, 0]] * 2, [[3, 1, 9, 9]] * 2)
    wide = sample_with((LEFT, True, "cat"), ((0.25, 0.0, 0.5, 1.0), False, "dog"), (RIGHT, False, "dog"))
    found = summary(measure([(maps, None)], [wide])["understanding"])
    assert found["gap"] == pytest.approx([3, -6])
    assert found["auroc"] == [1, 0]
    spread = np.std([3, 3, 0, 0, 0, 0]), np.std([3, 3, 9, 9, 9, 9])
    assert found["effect"] == pytest.approx([3 / spread[0], -6 / spread[1]])
    assert "sensitivity" not in found
    covered = sample_with((LEFT, True, "cat"), ((0.0, 0.0, 1.0, 1.0), False, "crowd"))
    assert summary(measure([(maps, maps)], [covered])["generation"]) == {"sensitivity": [0, 0]}
