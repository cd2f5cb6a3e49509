"""Questions have the one right answer, in words of the vocabulary; layers are compared as a loop would."""

import numpy as np
import pytest
import torch

from scone_pl.checkpoints import from_pretrained
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.mini.episode import TASKS
from scone_pl.mini.layers import (
    auroc,
    best_layer,
    image_maps,
    pack_of,
    sensitivity,
    separation,
    similarity_of_layers,
    with_instructions_changed,
)
from scone_pl.mini.questions import HUES, NUMBERS, hue_name, to_question
from scone_pl.mini.shards import WORLD_SETS, world_samples
from scone_pl.mini.world import WORDS, World, fixed_set
from scone_pl.model.sequence import SplitKind


def questions(task, count=200):
    world = World(3, stream="questions")
    for index in range(count):
        episode = world.sample(task, index)
        yield episode, to_question(episode, np.random.default_rng(index), world.config.shapes)


@pytest.mark.parametrize("task", [TASKS[0], *TASKS[2:4]])
def test_answers_are_true_of_the_picture(task):
    kinds = set()
    for episode, sample in questions(task):
        group = episode.candidates[0]
        kind, *rest = sample.instruction.split()
        kinds.add(kind)
        assert not sample.target
        assert set(sample.instruction.split()) | set(sample.answer.split()) <= set(WORDS)
        if kind == "count":
            assert sample.answer == NUMBERS[sum(s.shape == rest[0] for s in group)]
        elif kind == "what":
            assert sample.answer in {s.shape for s in group if rest[1] in ("only", s.slot)}
        else:
            place, shape = rest[-2:]
            (subject,) = [s for s in group if s.shape == shape and place in ("only", s.slot)]
            colour = hue_name(subject.colours[0, 0])
            assert sample.answer == (subject.slot if kind == "the" and place == "only" else colour)
        assert (sample.candidates is not None) == (kind == "the")
    assert kinds == {"the", "what", "count", "colour"}


def test_two_references_make_two_names_and_two_answers():
    pairs = [s for _, s in questions(TASKS[5]) if " and " in s.instruction]
    assert len(pairs) > 50
    for sample in pairs:
        assert len(sample.answer.split()) == 2
        assert len(sample.references) == len(sample.candidates) == 2


def test_sets_for_the_base():
    plain = list(world_samples(WORLD_SETS["plain"], 200))
    assert 0.15 < np.mean([not s.references for s in plain]) < 0.35
    assert all(s.target and not s.answer for s in plain)
    asked = list(world_samples(WORLD_SETS["questions"], 200))
    assert all(s.answer and not s.target for s in asked)
    assert any(s.candidates for s in asked)
    assert len({s.key for s in asked}) == 200


def test_hues():
    full = {"red": (255, 0, 0), "yellow": (250, 250, 5), "green": (0, 240, 0), "pink": (255, 0, 250)}
    assert {hue_name(np.array(rgb, dtype=np.uint8)) for rgb in full.values()} == set(full)
    assert hue_name(np.array((255, 0, 20), dtype=np.uint8)) == "red"
    assert len(HUES) == 6


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.integers(5, size=7).astype(float), rng.integers(5, size=4).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in one for b in other]
    assert auroc(one, other) == pytest.approx(np.mean(pairs))
    assert best_layer({"x": {"auroc": [0.5, 0.9, 0.7]}, "y": {"auroc": [0.5, 0.6, 0.95]}}, 2) == 2
    assert best_layer({"x": {"auroc": [0.5, 0.9, 0.7]}}, 0) == 0


def test_separation_has_a_number_a_layer_and_is_chance_for_random_weights(mini_world):
    found = separation(mini_world / "runs/mini/base", fixed_set(12, stream="validation", tasks=TASKS[2:4]))
    assert set(found) == {"understanding", "generation"}
    for expert in found.values():
        assert set(expert) == set(TASKS[2:4])
        for values in expert.values():
            assert [len(values[name]) for name in ("auroc", "gap", "effect", "sensitivity")] == [6, 6, 6, 6]
            assert all(0.2 < x < 0.8 for x in values["auroc"])


def test_similarity_in_both_experts_is_the_mean_cosine(mini_world):
    folder = mini_world / "runs/mini/base"
    model, tokenizer = from_pretrained(folder), Tokenizer.from_folder(folder)
    pack = pack_of(model, tokenizer, fixed_set(2, stream="validation", tasks=TASKS[3:5]))
    states = []
    hook = model.language_model.model.layers[3].register_forward_hook(lambda module, inputs, out: states.append(out))
    similarity = similarity_of_layers(model, pack)[3]
    hook.remove()
    merged = torch.zeros(len(pack), 64, dtype=torch.float64)
    merged[pack.understanding_index] = states[0].understanding.double()
    merged[pack.latent_index] = states[0].generation.double()
    found = {expert: list(maps) for expert, maps in image_maps(pack, similarity).items()}
    for expert, kind in (("understanding", SplitKind.VIT), ("generation", SplitKind.VAE)):
        for split, one in zip(pack.splits_of(kind), found[expert], strict=True):
            words = [
                i for s in pack.by_sample[split.sample] if s.kind == SplitKind.TEXT for i in range(s.start, s.stop)
            ]
            cosines = torch.cosine_similarity(merged[split.start + 1 : split.stop - 1, None], merged[words], dim=-1)
            torch.testing.assert_close(
                torch.from_numpy(one.grid).flatten().double(), cosines.mean(1), atol=1e-5, rtol=0
            )


def test_sensitivity_sees_the_instruction_and_nothing_else():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40, 40))
    assert sensitivity(one, one + 3.0) == pytest.approx(0.0, abs=1e-9)
    assert sensitivity(one, other) == pytest.approx(1.0, abs=0.1)
    assert sensitivity(one, -one) == pytest.approx(2.0)
    episodes = fixed_set(3, stream="validation", tasks=TASKS[2:4])
    changed = with_instructions_changed(episodes)
    assert [e.instruction for e in changed] == [episodes[i].instruction for i in (1, 2, 0, 4, 5, 3)]
    assert all(a.key == b.key for a, b in zip(episodes, changed, strict=True))
