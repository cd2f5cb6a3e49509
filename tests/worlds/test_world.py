import hashlib
import io
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.worlds.evaluate import tokens_of
from scone_pl.worlds.png import encode_png
from scone_pl.worlds.shapes.episode import BACKGROUNDS, SLOTS, SLOTS_BY_COUNT, TASKS
from scone_pl.worlds.shapes.questions import HUES, hue_name
from scone_pl.worlds.shapes.shapes import SHAPES, shape_mask
from scone_pl.worlds.shapes.world import SIZES, STREAMS, WORDS, World, WorldConfig, fixed_set

CONFIGS = {
    "default": WorldConfig(),
    "crowded": WorldConfig(candidates=4, references=4),
    "three": WorldConfig(candidates=3, references=3, canvas=32),
    "one size up": WorldConfig(canvas=32, cell=16, patches=4),
    "unseen shapes": WorldConfig(shapes=("heart", "hourglass", "tee")),
    "near": WorldConfig(similarity=0.8),
    "by colour": WorldConfig(naming="colour"),
    "by colour, crowded": WorldConfig(naming="colour", candidates=4, references=3),
    "by size": WorldConfig(naming="size"),
    "by size, crowded": WorldConfig(naming="size", candidates=4, references=4),
    "by size, one size up": WorldConfig(naming="size", canvas=48, cell=24),
}
UNCHANGED = {  # computed before naming by colour and size came
    "default": "0d3c917bb7c3e925",
    "crowded": "9f91b7af36dfeaf1",
    "three": "fad2279815acdb8c",
    "near": "6a8cbf309ebf560c",
}


def fingerprint(episode):
    return episode.instruction, episode.references.tobytes(), episode.target.tobytes()


@pytest.mark.parametrize("name", UNCHANGED)
def test_shipped_weights_and_written_sets_know_these_very_episodes(name):
    digest = hashlib.sha256()
    for stream in ("multi", "test", "questions", "plain"):
        for task in TASKS:
            for index in (0, 7, 2000):
                episode = World(0, CONFIGS[name], stream=stream).sample(task, index)
                instruction, *images = fingerprint(episode)
                for part in (episode.key.encode(), instruction.encode(), *images):
                    digest.update(part)
    assert digest.hexdigest()[:16] == UNCHANGED[name]


def test_the_vocabulary_is_that_of_the_shipped_tokenizer():
    assert hashlib.sha256(" ".join(WORDS).encode()).hexdigest()[:16] == "0f72da73d170480b"


def test_shapes_are_distinct_and_fill_the_cell():
    for one, other in combinations(SHAPES, 2):
        a, b = shape_mask(one), shape_mask(other)
        assert (a & b).sum() / (a | b).sum() < 0.7, (one, other)
    for shape in SHAPES:
        mask = shape_mask(shape, 16)
        assert mask.mean() >= 0.5
        quarters = mask.reshape(2, 8, 2, 8).sum((1, 3))
        assert quarters.min() >= 16, f"every patch of a {shape}'s pattern must show"
        assert shape_mask(shape, 4).reshape(2, 2, 2, 2).sum((1, 3)).min() >= 1
    assert len({shape_mask(shape, 4).tobytes() for shape in SHAPES}) == len(SHAPES)
    np.testing.assert_array_equal(shape_mask("cross", 12), shape_mask("cross", 4).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_a_function_of_its_index(task):
    world = World(3)
    late = fingerprint(world.sample(task, 10**12))
    first = [fingerprint(world.sample(task, i)) for i in range(5)]
    assert [fingerprint(World(3).sample(task, i)) for i in (4, 2, 0)] == [first[4], first[2], first[0]]
    assert fingerprint(World(3).sample(task, 10**12)) == late
    assert late not in first


def test_streams_seeds_and_tasks_share_no_episode():
    seen = set()
    count = 0
    for seed in (0, 1):
        for stream in STREAMS:
            for task in TASKS:
                world = World(seed, stream=stream)
                seen |= {fingerprint(world.sample(task, i))[1] for i in range(20)}
                count += 20
    assert len(seen) == count


def test_fixed_sets_grow_without_changing():
    short = fixed_set(3, tasks=TASKS[:2])
    assert [e.key for e in short] == [f"test-0-{task}-{i:08d}" for task in TASKS[:2] for i in range(3)]
    longer = fixed_set(5, tasks=TASKS[:2])
    assert [fingerprint(e) for e in short] == [fingerprint(e) for e in longer[:3] + longer[5:8]]


def words_that_fit(subject, config):
    """What may stand before its shape, worked out from the ground truth of the images alone."""
    size = {config.cell: "four", config.cell // 2: "one"}[subject.cell]
    return {"only", subject.slot, hue_name(subject.colours[0, 0]), size}


KINDS_OF_WORD = {"place": set(SLOTS), "colour": set(HUES), "size": set(SIZES)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("task", TASKS)
def test_the_instruction_names_exactly_the_target_subjects(task, name):
    config = CONFIGS[name]
    if len(config.shapes) <= config.references:
        pytest.skip("too few shapes")
    for index in range(30):
        episode = World(5, config).sample(task, index)
        words = episode.instruction.split()
        assert set(words) <= set(WORDS)
        assert words[0] == "draw"
        assert words[-2:] == ["on", episode.background]
        names = " ".join(words[1:-2]).split(" and ")
        num_references = config.references if "multi" in task else 1
        num_candidates = config.candidates if task.startswith("distinction") else 1
        assert len(names) == len(episode.candidates) == len(episode.asked) == num_references
        everyone = [subject for group in episode.candidates for subject in group]
        for name_, group, asked in zip(names, episode.candidates, episode.asked, strict=True):
            article, which, shape = name_.split()
            assert article == "the"
            assert len(group) == num_candidates
            fitting = [s for s in everyone if s.shape == shape and which in words_that_fit(s, config)]
            assert len(fitting) == 1
            assert [s for s in group if s.is_target] == fitting
            assert which in (KINDS_OF_WORD[config.naming] if "intra" in task else {"only"})
            assert asked.cell == config.cell
            assert asked.shape == shape
            np.testing.assert_array_equal(asked.colours, fitting[0].colours)
            if "intra" in task:
                assert {s.shape for s in group} == {shape}
            elif num_candidates > 1:
                assert shape not in [s.shape for s in group if not s.is_target]
        assert tuple(s.slot for s in episode.asked) == SLOTS_BY_COUNT[num_references]


@pytest.mark.parametrize("name", ["default", "by colour", "by size"])
def test_only_two_instruction_lengths(name):
    config = CONFIGS[name]
    lengths = {task: {len(e.instruction.split()) for e in fixed_set(20, tasks=[task], config=config)} for task in TASKS}
    assert all(length == ({10} if "multi" in task else {6}) for task, length in lengths.items())


def test_patterns_differ_unless_similarity_says_otherwise():
    gaps = {}
    for similarity in (0.0, 0.5, 0.9, 1.0):
        episodes = fixed_set(40, tasks=["distinction_single_intra"], config=WorldConfig(similarity=similarity))
        pairs = [e.candidates[0] for e in episodes]
        gaps[similarity] = [np.sqrt(((a.colours.astype(float) - b.colours) ** 2).mean()) for a, b in pairs]
    assert min(gaps[0.0]) >= 99
    assert np.mean(gaps[0.0]) > np.mean(gaps[0.5]) > np.mean(gaps[0.9]) > 5
    assert max(gaps[1.0]) == 0


@pytest.mark.parametrize("name", ["by colour", "by colour, crowded"])
def test_named_hues_are_different_and_patterns_far_apart(name):
    used = set()
    for episode in fixed_set(40, tasks=TASKS[3:6:2], config=CONFIGS[name]):
        for group in episode.candidates:
            assert len({hue_name(s.colours[0, 0]) for s in group}) == len(group)
            used |= {hue_name(s.colours[0, 0]) for s in group if s.is_target}
            gaps = [np.sqrt(((a.colours.astype(float) - b.colours) ** 2).mean()) for a, b in combinations(group, 2)]
            assert min(gaps) > 70
    assert used == set(HUES)


@pytest.mark.parametrize("task", TASKS[:3])
def test_naming_changes_only_what_it_names(task):
    for naming in ("colour", "size"):
        for one, other in zip(
            fixed_set(5, tasks=[task]), fixed_set(5, tasks=[task], config=WorldConfig(naming=naming)), strict=True
        ):
            assert fingerprint(one) == fingerprint(other)
    by_place, by_size = (fixed_set(5, tasks=TASKS[3:4], config=CONFIGS[name]) for name in ("default", "by size"))
    for one, other in zip(by_place, by_size, strict=True):
        np.testing.assert_array_equal(one.target, other.target)


@pytest.mark.parametrize("name", ["by size", "by size, crowded"])
def test_small_subjects_fill_one_token_of_four(name):
    target_sizes = set()
    for episode in fixed_set(20, tasks=["distinction_multi_intra"], config=CONFIGS[name]):
        for image, group in zip(episode.references, episode.candidates, strict=True):
            (target,) = [s for s in group if s.is_target]
            assert {s.cell for s in group if not s.is_target} == {12 - target.cell}
            target_sizes.add(target.cell)
            for subject in group:
                left, top, right, bottom = subject.box
                assert (right - left, bottom - top) == (subject.cell, subject.cell)
                tokens = tokens_of([subject], 16, (4, 4))
                assert tokens.sum() == (subject.cell // 4) ** 2
                assert tokens[top // 4, left // 4]
                cell = image[top:bottom, left:right]
                np.testing.assert_array_equal(cell[subject.mask], subject.pattern[subject.mask])
                quarter = subject.cell // 2
                np.testing.assert_array_equal(subject.pattern[quarter, 0], subject.colours[1, 0])
    assert target_sizes == {4, 8}


def test_subject_colours_stand_out_from_every_background():
    for episode in fixed_set(50, tasks=["distinction_multi_cross"], config=WorldConfig(similarity=0.5)):
        for subject in (s for group in episode.candidates for s in group):
            for background in [*BACKGROUNDS.values(), (128, 128, 128)]:
                distance = np.sqrt(((subject.colours.astype(float) - background) ** 2).mean(-1))
                assert distance.min() > 50
    for one, other in combinations(BACKGROUNDS.values(), 2):
        assert np.sqrt(((np.array(one, float) - other) ** 2).mean()) > 60


def test_the_ground_truth_describes_the_images():
    episode = World(1, WorldConfig(canvas=32, cell=16)).sample("distinction_multi_cross", 4)
    for reference, group, number in zip(episode.references, episode.candidates, range(2), strict=True):
        subject = next(s for s in group if s.is_target)
        left, top, right, bottom = subject.box
        cell = reference[top:bottom, left:right]
        assert (cell[subject.mask] == subject.pattern[subject.mask]).all()
        assert (cell[~subject.mask] == 128).all()
        assert episode.target_mask(number).sum() == subject.mask.sum()
        np.testing.assert_array_equal(reference[episode.target_mask(number)], subject.pattern[subject.mask])
    assert tuple(episode.target[0, 0]) == BACKGROUNDS[episode.background]


def test_samples_carry_images_boxes_and_task():
    episode = World(1).sample("distinction_single_intra", 7)
    sample = episode.to_sample()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.target))), episode.target)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.references[0]))), episode.references[0])
    assert sample.kind == "multi"
    assert World(1).sample("composition_multi", 7).to_sample().kind == "single"
    assert sample.metadata["task"] == "distinction_single_intra"
    assert [c.box for c in sample.candidates[0]] == [(0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)]
    assert [c.is_target for c in sample.candidates[0]] == [bool(label) for label in episode.labels[0]]


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
def test_png_round_trip(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(image)))), image)


def test_single_subjects_stand_where_told():
    episodes = fixed_set(60, tasks=["composition_single"])
    assert {e.candidates[0][0].slot for e in episodes} == {"centre", "left", "right"}
    centred = fixed_set(10, tasks=["composition_single"], config=WorldConfig(single_slot="centre"))
    assert {e.candidates[0][0].slot for e in centred} == {"centre"}
    assert {slot for slots in SLOTS_BY_COUNT.values() for slot in slots} == set(SLOTS)


@pytest.mark.parametrize(
    "change",
    [
        {"cell": 12},
        {"canvas": 12},
        {"patches": 3},
        {"patches": 0},
        {"shapes": ("star", "blob", "ring")},
        {"shapes": ("star", "ring")},
        {"candidates": 5},
        {"references": 1},
        {"similarity": 1.5},
        {"single_slot": "top"},
        {"naming": "shape"},
        {"naming": "colour", "similarity": 0.5},
        {"naming": "size", "patches": 8},
    ],
)
def test_impossible_worlds_are_refused_in_one_line(change):
    with pytest.raises(UserError) as error:
        replace(WorldConfig(), **change)
    assert "\n" not in str(error.value)
    assert f"world.{next(iter(change))}" in str(error.value), "the option that was typed"


@pytest.mark.parametrize("verb", ["mini", "icons"])
def test_a_stream_is_refused_by_its_option(verb, capsys):
    assert main([verb, "contact_sheet", "--stream", "train"]) == 2
    assert "--stream is 'train'; choose from base, refined" in capsys.readouterr().err


def test_unknown_streams_and_tasks_are_refused():
    with pytest.raises(UserError, match="stream"):
        World(0, stream="train")
    with pytest.raises(UserError, match="task"):
        World(0).sample("composition", 0)
    with pytest.raises(UserError, match="seed"):
        World(-1)
