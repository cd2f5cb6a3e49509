import math
import pickle

import pytest
import torch
from model_helpers import (
    EVERYTHING,
    NO_TEXT,
    SEQUENCE_FORMAT,
    SEVERAL_TARGETS,
    SPECIAL,
    TEXT_ONLY,
    TEXT_TO_IMAGE,
    TWO_REFERENCES,
    make_pack,
    random_image,
)

from scone_pl.model.builder import SequenceBuilder, grid_positions, patchify_image
from scone_pl.model.sequence import SplitKind

TEXT, VIT, VAE, TARGET = SplitKind.TEXT, SplitKind.VIT, SplitKind.VAE, SplitKind.TARGET


def test_order_places_and_positions():
    pack = make_pack(TWO_REFERENCES)
    assert [s.kind for s in pack.splits] == [VAE, VIT, VAE, VIT, TEXT, TARGET]
    assert [s.length for s in pack.splits] == [8, 8, 11, 10, 7, 14]
    assert [s.start for s in pack.splits] == [0, 8, 16, 27, 37, 44]
    assert len(pack) == 58
    # An image split takes one position, a text as many as it has tokens, the target the next one.
    assert [s.position for s in pack.splits] == [0, 1, 2, 3, 4, 11]
    expected = [0] * 8 + [1] * 8 + [2] * 11 + [3] * 10 + list(range(4, 11)) + [11] * 14
    assert pack.position_ids.tolist() == expected
    assert [s.grid for s in pack.splits] == [(2, 3), (3, 2), (3, 3), (2, 4), None, (3, 4)]
    assert [s.image for s in pack.splits] == [0, 0, 1, 1, None, None]
    assert [s.pixels for s in pack.splits] == [0, None, 1, None, None, 2]
    assert pack.timestep_logits.tolist() == pytest.approx([-math.inf, -math.inf, 0.3])


def test_frames_and_words():
    pack = make_pack({"references": [((1, 2), (1, 1))], "text": 2, "targets": [(1, 1)]})
    ids = torch.full((len(pack),), -1)
    ids[pack.text_index] = pack.text_ids
    start, end = SPECIAL.start_image, SPECIAL.end_image
    words = [SPECIAL.begin_text, 5, 8, SPECIAL.end_text]
    assert ids.tolist() == [start, -1, -1, end, start, -1, end, *words, start, -1, end]
    assert pack.instruction_index.tolist() == [7, 8, 9, 10]
    assert pack.vit_index.tolist() == [5]
    assert pack.latent_index.tolist() == [1, 2, 12]
    assert pack.target_index.tolist() == [12]
    assert pack.target_in_latents.tolist() == [2]
    assert pack.reference_tokens.nonzero().flatten().tolist() == [1, 2, 5]


def test_samples_follow_each_other_and_positions_start_again():
    pack = make_pack(*EVERYTHING)
    assert pack.num_samples == len(EVERYTHING)
    assert pack.keys == tuple(f"s{i}" for i in range(len(EVERYTHING)))
    stop = 0
    for number, splits in enumerate(pack.by_sample):
        assert splits[0].start == stop
        assert splits[0].position == 0
        assert all(s.sample == number for s in splits)
        alone = make_pack(EVERYTHING[number] | {"seed": number})
        stop = splits[-1].stop
        assert pack.position_ids[splits[0].start : stop].tolist() == alone.position_ids.tolist()
    assert stop == len(pack)
    assert pack.sample_of_token.tolist() == sorted(pack.sample_of_token.tolist())


def test_every_token_has_one_expert_and_merge_undoes_the_division():
    pack = make_pack(*EVERYTHING)
    index = torch.cat([pack.understanding_index, pack.latent_index])
    assert torch.equal(index.sort().values, torch.arange(len(pack)))
    tokens = torch.arange(len(pack))
    assert torch.equal(index[pack.merge_index], tokens)
    assert torch.equal(
        pack.understanding_index[pack.understanding_row[pack.understanding_index]], tokens[pack.understanding_index]
    )


def test_dropped_images_use_up_their_positions():
    pack = make_pack({"references": [(None, (2, 2)), ((2, 2), None), (None, None)], "text": 1, "targets": [(1, 1)]})
    assert [s.kind for s in pack.splits] == [VIT, VAE, TEXT, TARGET]
    assert [s.position for s in pack.splits] == [1, 2, 6, 9]


def test_text_only():
    pack = make_pack(TEXT_ONLY)
    assert [s.kind for s in pack.splits] == [TEXT]
    assert pack.position_ids.tolist() == list(range(8))
    for empty in (pack.vit_index, pack.latent_index, pack.target_index, pack.target_in_latents, pack.latent_positions):
        assert len(empty) == 0
    assert pack.latent_splits == ()
    assert len(pack.expand_latent_splits(torch.zeros(0))) == 0


def test_no_references_and_no_text():
    assert [s.kind for s in make_pack(TEXT_TO_IMAGE).splits] == [TEXT, TARGET]
    assert make_pack(TEXT_TO_IMAGE).splits[-1].position == 5
    no_text = make_pack(NO_TEXT)
    assert [s.kind for s in no_text.splits] == [VAE, VIT, TARGET]
    assert no_text.splits[-1].position == 2, "without an instruction the positions close up"
    assert len(no_text.instruction_index) == 0


def test_several_targets_share_a_position():
    pack = make_pack(SEVERAL_TARGETS)
    targets = pack.splits_of(TARGET)
    assert [s.grid for s in targets] == [(2, 2), (3, 2), (2, 2)]
    assert len({s.pixels for s in targets}) == 3
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    builder.add_targets(random_image(2, 2, 0), [0.1, -0.2, 0.7])
    same_image = builder.build()
    assert {s.position for s in same_image.splits} == {0}
    assert [s.pixels for s in same_image.splits] == [0, 0, 0]
    assert len(same_image.images) == 1
    assert same_image.timestep_logits.tolist() == pytest.approx([0.1, -0.2, 0.7])
    assert len(same_image.target_index) == 12


def test_targets_come_last():
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    builder.add_targets(random_image(1, 1, 0), [0.0])
    for add in (
        lambda: builder.add_text([5]),
        lambda: builder.add_vit(random_image(1, 1, 0), reference=0),
        lambda: builder.add_vae(random_image(1, 1, 0), reference=0),
    ):
        with pytest.raises(ValueError, match="targets come last"):
            add()
    builder.begin_sample()
    builder.add_text([5])  # a new sample may


def test_splits_need_a_sample():
    with pytest.raises(ValueError, match="begin_sample"):
        SequenceBuilder(SEQUENCE_FORMAT).add_text([5])


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (
            lambda b, image: b.add_vae(image, reference=0),
            "a VAE image of 36 x 8 pixels makes a grid of 9 x 2 tokens, but the checkpoint's position table has 8 a "
            "side: use images of at most 32 pixels a side",
        ),
        (lambda b, image: b.add_targets(image, [0.0]), "a VAE image of 36 x 8 pixels makes a grid of 9 x 2 tokens"),
        (lambda b, image: b.add_vit(image, reference=0), "a ViT image of 36 x 8 pixels makes a grid of 9 x 2 tokens"),
    ],
)
def test_image_over_the_position_table(add, message):
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    with pytest.raises(ValueError, match=message) as error:
        add(builder, random_image(9, 2, 0))
    assert "\n" not in str(error.value)


def test_sides_must_fit_the_stride():
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    with pytest.raises(ValueError, match="a ViT image of 8 x 6 pixels must have sides divisible by 4"):
        builder.add_vit(torch.zeros(3, 8, 6), reference=0)


def test_labels_are_the_next_tokens():
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample()
    builder.add_vit(random_image(1, 2, 0), reference=0)
    builder.add_text([7, 8])
    builder.add_text([9, 10], loss=True)
    pack = builder.build()
    assert pack.label_index.tolist() == [8, 9, 10], "begin, 9 and 10 predict 9, 10 and the end"
    assert pack.label_ids.tolist() == [9, 10, SPECIAL.end_text]


def test_patches_are_row_major_with_channels_fastest():
    image = torch.arange(3 * 4 * 6.0).view(3, 4, 6)
    patches = patchify_image(image, 2)
    assert patches.shape == (6, 12)
    row, column = 1, 2
    expected = [image[c, 2 * row + y, 2 * column + x] for y in range(2) for x in range(2) for c in range(3)]
    assert patches[row * 3 + column].tolist() == expected
    assert grid_positions((2, 3), 8).tolist() == [0, 1, 2, 8, 9, 10]


def test_start_position_of_a_cached_context():
    builder = SequenceBuilder(SEQUENCE_FORMAT)
    builder.begin_sample(position=17)
    builder.add_targets(random_image(1, 2, 0), [0.0])
    assert builder.build().position_ids.tolist() == [17] * 4


def assert_equal_packs(a, b):
    assert a.splits == b.splits
    assert (a.special, a.keys) == (b.special, b.keys)
    for name in ("text_ids", "vit_patches", "vit_positions", "latent_positions", "label_index", "label_ids"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.timestep_logits, b.timestep_logits)
    assert torch.equal(a.vit_labels.nan_to_num(-1), b.vit_labels.nan_to_num(-1))
    assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
    for name in ("position_ids", "merge_index", "reference_tokens", "target_in_latents", "sample_of_token"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_pickle_and_to():
    pack = make_pack(*EVERYTHING)
    assert_equal_packs(pickle.loads(pickle.dumps(pack)), pack)  # noqa: S301 (our own bytes)
    pack.position_ids  # noqa: B018 (cached before the copy)
    assert_equal_packs(pickle.loads(pickle.dumps(pack)), pack)  # noqa: S301
    assert_equal_packs(pack.to("cpu"), pack)
    moved = pack.to("meta")
    tensors = [moved.text_ids, moved.vit_patches, moved.timestep_logits, moved.vit_labels, *moved.images]
    assert all(t.is_meta for t in tensors)
    assert moved.position_ids.is_meta
    assert not pack.text_ids.is_meta
    assert moved.splits == pack.splits
    assert moved.keys == pack.keys
