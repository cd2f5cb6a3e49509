"""The judge on hand-made images of every failure, with the exact scores they must get."""

from dataclasses import replace

import numpy as np
import pytest

from scone_pl.evaluation.scores import distinction_scores, item_scores
from scone_pl.worlds.shapes.episode import BACKGROUNDS, TASKS, Episode, Subject, draw_image, slot_corner
from scone_pl.worlds.shapes.judge import judge
from scone_pl.worlds.shapes.world import World, WorldConfig, fixed_set

RED, GREEN, BLUE, YELLOW = (240, 20, 20), (20, 240, 20), (20, 20, 240), (240, 240, 20)
CYAN, PINK = (20, 240, 240), (240, 20, 240)


def subject(shape, colours, slot, is_target=False):
    pattern = np.array(colours, dtype=np.uint8).reshape(2, 2, 3)
    return Subject(shape, pattern, slot, slot_corner(slot, 16, 8), 8, is_target)


def make_episode(task, *groups, background="black"):
    slots = ("centre",) if len(groups) == 1 else ("left", "right")
    target = [next(s for s in group if s.is_target) for group in groups]
    asked = tuple(s.moved(slot, 16) for s, slot in zip(target, slots, strict=True))
    return Episode(
        key="hand-made",
        task=task,
        instruction="",
        background=background,
        canvas=16,
        candidates=tuple(groups),
        asked=asked,
    )


TARGET = subject("star", (RED, GREEN, BLUE, YELLOW), "left", is_target=True)
TWIN = subject("star", (CYAN, PINK, YELLOW, RED), "right")
OTHER = subject("ring", (CYAN, PINK, YELLOW, RED), "right")
SECOND = subject("ring", (PINK, BLUE, CYAN, GREEN), "left", is_target=True)
THIRD = subject("cross", (YELLOW, CYAN, RED, BLUE), "right")

INTRA = make_episode("distinction_single_intra", (TARGET, TWIN))
CROSS = make_episode("distinction_single_cross", (TARGET, OTHER))
PAIR = make_episode("composition_multi", (TARGET,), (SECOND,))
MULTI = make_episode("distinction_multi_cross", (TARGET, TWIN), (SECOND, THIRD))


def paint(*placed, background="black"):
    return draw_image(tuple(s.moved(slot, 16) for s, slot in placed), BACKGROUNDS[background], canvas=16)


def check(episode, image, *, pf, sc, presence, failure, places=None, extra=False, background=True):
    verdict = judge(episode, image)
    assert verdict.failure == failure
    assert verdict.presence == presence
    assert verdict.prompt_following == pytest.approx(pf, abs=1e-12)
    assert verdict.subject_consistency == pytest.approx(sc, abs=1e-9)
    assert verdict.extra == extra
    assert verdict.background_right == background
    if places is not None:
        assert verdict.slots == places
    return verdict


def dis(verdict):
    return distinction_scores(verdict.labels, verdict.presence)["DIS"]


@pytest.mark.parametrize("episode", [INTRA, CROSS, PAIR, MULTI])
def test_perfect(episode):
    check(episode, episode.target, pf=10, sc=10, presence=episode.labels, failure="none")


@pytest.mark.parametrize("episode", [INTRA, CROSS])
def test_nothing_drawn(episode):
    found = check(episode, paint(), pf=0, sc=0, presence=((0, 0),), failure="omission", places=(0.0,))
    assert dis(found) == 2.5


@pytest.mark.parametrize("episode", [INTRA, CROSS])
def test_both_drawn(episode):
    drawn = paint((TARGET, "left"), (episode.candidates[0][1], "right"))
    found = check(
        episode,
        drawn,
        pf=10 * 0.5 * 0.5,
        sc=10,
        presence=((1, 1),),
        failure="redundancy",
        places=(0.5,),
        extra=True,
    )
    assert dis(found) == 5.833


def test_something_extra_beside_the_asked_subjects():
    drawn = paint((TARGET, "left"), (SECOND, "right"))
    found = check(MULTI, drawn, pf=10, sc=10, presence=((1, 0), (1, 0)), failure="none")
    assert dis(found) == 10
    drawn[14:] = 255
    check(MULTI, drawn, pf=5, sc=10, presence=((1, 0), (1, 0)), failure="redundancy", extra=True)


def test_blend_of_the_two_images():
    # Each patch differs from its twin's in one channel of three, by 220, so the average is off by 110 there.
    twin = subject("star", (YELLOW, YELLOW, PINK, RED), "right")
    episode = make_episode("distinction_single_intra", (TARGET, twin))
    drawn = ((episode.target.astype(int) + paint((twin, "centre"))) // 2).astype(np.uint8)
    expected = 10 * (1 - 1.1 / np.sqrt(3))
    found = check(episode, drawn, pf=10, sc=expected, presence=((0, 0),), failure="blending", places=(1.0,))
    assert dis(found) == 2.5


def test_blend_of_different_shapes():
    wrong = paint((OTHER, "centre"))
    drawn = ((CROSS.target.astype(int) + wrong) // 2).astype(np.uint8)
    assert judge(CROSS, drawn).failure == "blending"
    assert judge(CROSS, drawn).presence == ((0, 0),)


def test_blend_in_patches():
    collage = subject("star", (RED, GREEN, YELLOW, RED), "centre")
    found = judge(INTRA, paint((collage, "centre")))
    assert found.failure == "blending"
    assert found.presence == ((0, 0),)


def test_blend_of_two_references():
    mixed = ((paint((TARGET, "left"), (SECOND, "right")).astype(int) + paint((SECOND, "left"))) // 2).astype(np.uint8)
    mixed[:, 8:] = paint((SECOND, "right"))[:, 8:]
    found = judge(PAIR, mixed)
    assert found.failure == "blending"
    assert found.presence == ((0,), (1,))


def test_the_wrong_one_of_the_same_shape():
    drawn = paint((TWIN, "centre"))
    found = check(INTRA, drawn, pf=10, sc=0, presence=((0, 1),), failure="wrong_subject", places=(1.0,))
    assert dis(found) == 0


def test_the_wrong_one_of_another_shape():
    drawn = paint((OTHER, "centre"))
    found = check(CROSS, drawn, pf=0, sc=0, presence=((0, 1),), failure="wrong_subject", places=(0.0,))
    assert dis(found) == 0


def test_an_invented_pattern_is_distorted():
    invented = subject("star", (PINK, YELLOW, CYAN, BLUE), "centre")
    check(INTRA, paint((invented, "centre")), pf=10, sc=0, presence=((0, 0),), failure="distorted")


@pytest.mark.parametrize("slot", ["left", "right", "northeast"])
def test_the_right_one_in_the_wrong_place(slot):
    drawn = paint((TARGET, slot))
    found = check(INTRA, drawn, pf=5, sc=10, presence=((1, 0),), failure="none", places=(0.5,))
    assert dis(found) == 10


@pytest.mark.parametrize("background", ["white", "red", "purple"])
def test_the_wrong_background(background):
    drawn = paint((TARGET, "centre"), background=background)
    found = check(INTRA, drawn, pf=5, sc=10, presence=((1, 0),), failure="none", places=(1.0,), background=False)
    assert dis(found) == 10


def test_the_right_pattern_in_the_wrong_shape():
    drawn = paint((replace(TARGET, shape="ring"), "centre"))
    found = judge(CROSS, drawn)
    assert found.presence == ((0, 0),)
    assert found.prompt_following == 0
    assert found.failure == "distorted"


def test_two_subjects_swapped():
    drawn = paint((SECOND, "left"), (TARGET, "right"))
    check(PAIR, drawn, pf=5, sc=10, presence=((1,), (1,)), failure="none", places=(0.5, 0.5))


def test_one_of_two_missing():
    drawn = paint((TARGET, "left"))
    found = judge(PAIR, drawn)
    assert found.presence == ((1,), (0,))
    assert found.prompt_following == 5
    assert found.slots == (1.0, 0.0)
    assert found.failure == "omission"


def test_one_of_two_replaced_by_its_neighbour():
    drawn = paint((TARGET, "left"), (THIRD, "right"))
    found = judge(MULTI, drawn)
    assert found.presence == ((1, 0), (0, 1))
    assert found.slots == (1.0, 0.0)
    assert found.failure == "wrong_subject"
    assert dis(found) == 5


def test_of_two_look_alikes_only_the_nearer_one_is_present():
    near = replace(TARGET, colours=TARGET.colours ^ 16, slot="right", is_target=False)
    episode = make_episode("distinction_single_intra", (TARGET, near))
    assert judge(episode, episode.target).presence == ((1, 0),)
    assert judge(episode, paint((near, "centre"))).presence == ((0, 1),)
    between = ((episode.target.astype(int) + paint((near, "centre"))) // 2).astype(np.uint8)
    assert judge(episode, between).presence == ((0, 0),)
    assert judge(episode, between).failure == "blending"


@pytest.mark.parametrize("near", [TARGET, TWIN])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_told_from_painting_too_bad_to_be_present(near, seed):
    noise = np.random.default_rng(seed).normal(0, 70, (16, 16, 3))
    found = judge(INTRA, np.clip(paint((near, "centre")) + noise, 0, 255).round().astype(np.uint8))
    assert found.presence == ((0, 0),)
    assert found.failure == "distorted"
    assert found.choices == (near is TARGET,)


def test_one_of_two_choices():
    found = judge(MULTI, paint((TARGET, "left"), (THIRD, "right")))
    assert found.choices == (True, False)
    assert found.record("distinction_multi_cross", "k")["choice"] == 0.5
    assert "choice" not in judge(PAIR, PAIR.target).record("composition_multi", "k")


@pytest.mark.parametrize(
    "config",
    [
        WorldConfig(),
        WorldConfig(candidates=4, references=4),
        WorldConfig(canvas=32, cell=16),
        WorldConfig(similarity=0.8),
        WorldConfig(naming="colour"),
        WorldConfig(naming="size", references=3),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_perfect_and_slightly_noisy_answers_everywhere(task, config):
    rng = np.random.default_rng(0)
    for episode in fixed_set(12, tasks=[task], config=config):
        verdict = judge(episode, episode.target)
        scores = item_scores(verdict.record(task, episode.key))
        assert {name: scores[name] for name in ("PF", "SC", "COM")} == {"PF": 10, "SC": 10, "COM": 10}
        assert scores.get("DIS", 10) == 10
        assert verdict.failure == "none"
        assert all(verdict.choices)
        noise = rng.normal(0, 8, episode.target.shape)
        noisy = np.clip(episode.target + noise, 0, 255).round().astype(np.uint8)
        scores = item_scores(judge(episode, noisy).record(task, episode.key))
        assert min(scores["PF"], scores["SC"], scores.get("DIS", 10)) >= 9


@pytest.mark.parametrize(
    "config",
    [
        WorldConfig(naming="colour", candidates=3),
        WorldConfig(naming="size"),
        WorldConfig(naming="size", candidates=4),
        WorldConfig(references=4),
    ],
)
def test_a_distractor_in_place_of_the_target_is_a_wrong_subject(config):
    for episode in fixed_set(12, tasks=TASKS[3:6:2], config=config):
        wrong = [next(s for s in group if not s.is_target) for group in episode.candidates]
        placed = [replace(s, cell=8).moved(asked.slot, 16) for s, asked in zip(wrong, episode.asked, strict=True)]
        verdict = judge(episode, draw_image(tuple(placed), BACKGROUNDS[episode.background], 16))
        assert verdict.failure == "wrong_subject"
        assert not any(verdict.choices)
        assert verdict.presence == tuple(tuple(int(s in wrong) for s in group) for group in episode.candidates)
        assert verdict.slots == (1.0,) * len(wrong)


def test_a_small_one_drawn_small_is_not_as_asked():
    for episode in fixed_set(12, tasks=TASKS[3:4], config=WorldConfig(naming="size")):
        drawn = draw_image((replace(episode.asked[0], cell=4),), BACKGROUNDS[episode.background], 16)
        verdict = judge(episode, drawn)
        assert verdict.presence == ((0, 0),)
        assert verdict.prompt_following == 0


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="16, 16, 3"):
        judge(INTRA, np.zeros((32, 32, 3), dtype=np.uint8))


def test_known_limits_of_the_judge():
    """What docs/evidence/page.yaml says that the judge cannot tell: targets off their slot, and faint ones."""
    world = World(0, stream="test")
    episodes = [world.sample("distinction_single_cross", index) for index in range(20)]

    def verdicts(change):
        return [judge(e, change(e.target)) for e in episodes]

    assert {v.failure for v in verdicts(lambda image: np.roll(image, 3, axis=0))} == {"redundancy"}
    by_one = verdicts(lambda image: np.roll(image, 1, axis=0))
    assert np.mean([v.prompt_following for v in by_one]) < 2
    assert all(v.choices == (True,) for v in by_one), "choice is not affected"

    def fade(image):
        background = np.median(image.reshape(-1, 3), axis=0)
        return (background + 0.6 * (image - background)).round().astype(np.uint8)

    faint = verdicts(fade)
    assert {"blending", "distorted"} <= {v.failure for v in faint}
    assert all(v.choices == (True,) for v in faint)
