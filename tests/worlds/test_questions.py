"""Questions have the one right answer, in words of the vocabulary; layers are compared task by task."""

import numpy as np
import pytest

from scone_pl.errors import UserError
from scone_pl.worlds.layers import instructions_exchanged, layers_report
from scone_pl.worlds.shapes.episode import TASKS
from scone_pl.worlds.shapes.questions import HUES, NUMBERS, hue_name, to_question
from scone_pl.worlds.shapes.shards import WORLD_SETS, world_samples
from scone_pl.worlds.shapes.world import WORDS, World, fixed_set


def questions(task, count=200):
    world = World(3, stream="questions")
    for index in range(count):
        episode = world.sample(task, index)
        yield episode, to_question(episode, np.random.default_rng(index), world.config.shapes)


@pytest.mark.parametrize("task", [TASKS[0], *TASKS[2:4]])
def test_answers_are_true_of_the_image(task):
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


def test_separation_has_a_number_a_layer_and_is_chance_for_random_weights(mini_world):
    report = layers_report(mini_world / "runs/mini/base", fixed_set(12, stream="validation", tasks=TASKS[2:4]))
    assert sum(report["layer_choice"]["labels"]["image"]["layers"]) == 24
    found = report["layers"]
    assert set(found) == {"understanding", "generation", "inputs"}
    for expert, of_tasks in found.items():
        assert set(of_tasks) == set(TASKS[2:4])
        for values in of_tasks.values():
            layers = 1 if expert == "inputs" else 6
            assert {len(values[name]) for name in ("auroc", "gap", "effect", "sensitivity")} == {layers}
            assert all(0.2 < x < 0.8 for x in values["auroc"])


def test_instructions_are_exchanged_within_a_task():
    episodes = fixed_set(3, stream="validation", tasks=TASKS[2:4])
    assert instructions_exchanged(episodes) == [episodes[i].instruction for i in (1, 2, 0, 4, 5, 3)]
    many = fixed_set(60, stream="validation", tasks=TASKS[2:4])  # in which neighbours ask for the same
    assert all(e.instruction != other for e, other in zip(many, instructions_exchanged(many), strict=True))


@pytest.mark.parametrize(
    ("per_task", "tasks", "says"),
    [
        (4, TASKS[:2], "needs a distinction task .*, not composition_single, composition_multi$"),
        (1, TASKS, "distinction_single_cross: .* raise per_task$"),
        (0, TASKS, "at least one episode"),
    ],
)
def test_a_look_at_layers_says_which_episodes_it_needs(per_task, tasks, says, tmp_path):
    with pytest.raises(UserError, match=says):
        layers_report(tmp_path, fixed_set(per_task, tasks=tasks))
