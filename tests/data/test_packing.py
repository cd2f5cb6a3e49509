import dataclasses
import json

import numpy as np
import pytest
import torch
from data_helpers import GOLDEN, encode, make_sample
from safetensors.torch import load_file

from scone_pl.data.packing import (
    PackingConfig,
    add_sample,
    prepare_sample,
    sample_layout,
    sample_length,
)
from scone_pl.data.sample import BrokenSampleError, Candidate, Sample, parse_candidates
from scone_pl.data.seeding import generator
from scone_pl.data.shards import ShardSet
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.model.boxes import tokens_in
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SequenceFormat, SpecialTokens, SplitKind
from scone_pl.model.vae import as_float
from scone_pl.sampling.context import pack_contexts
from scone_pl.sampling.prompts import prompts_of


class FixedIds:
    """Stands in for a tokenizer: the golden data only tells ids."""

    def __init__(self, ids):
        self.ids = ids

    def encode(self, text):
        return self.ids


def png(array):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_golden_pack():
    expected = json.loads((GOLDEN / "expected.json").read_text())
    tensors = load_file(GOLDEN / "expected.safetensors")
    config, tokens = expected["config"], expected["special_tokens"]
    special = SpecialTokens(
        tokens["bos_token_id"], tokens["eos_token_id"], tokens["start_of_image"], tokens["end_of_image"]
    )
    sequence_format = SequenceFormat(
        special=special,
        latent_stride=config["downsample"],
        latent_positions_per_side=config["scone"]["max_latent_size"],
        vit_patch_size=config["vit_transform"]["image_stride"],
        vit_positions_per_side=config["scone"]["vit_max_num_patch_per_side"],
    )
    limits = {
        name: ResizeLimits(max_size=config[name]["max_image_size"], min_size=config[name]["min_image_size"])
        for name in ("vae_transform", "vit_transform")
    }
    builder = SequenceBuilder(sequence_format)
    for number, described in enumerate(expected["samples"]):
        images = [png(tensors[f"sample{number}.image{i}"].numpy()) for i in range(described["num_refs"] + 1)]
        sample = Sample(key=str(number), references=tuple(images[:-1]), instruction="", target=images[-1])
        packing = PackingConfig(
            vae_resize=limits["vae_transform"],
            vit_resize=limits["vit_transform"],
            instruction_dropout=float(described["drop_text"]),
        )
        add_sample(builder, sample, FixedIds(described["text_ids"]), packing, generator(number))
    sequence = builder.build()
    assert len(sequence) == expected["pack"]["sequence_length"]
    for name, value in {
        "packed_text_ids": sequence.text_ids,
        "packed_text_indexes": sequence.text_index,
        "packed_instruc_indexes": sequence.instruction_index,
        "packed_position_ids": sequence.position_ids,
        "packed_vit_tokens": as_float(sequence.vit_patches),
        "packed_vit_token_indexes": sequence.vit_index,
        "packed_vit_position_ids": sequence.vit_positions,
        "packed_vae_token_indexes": sequence.latent_index,
        "packed_latent_position_ids": sequence.latent_positions,
        "mse_loss_indexes": sequence.target_index,
    }.items():
        assert torch.equal(value, tensors[f"pack.{name}"]), name
    for i, image in enumerate(sequence.images):
        assert torch.equal(as_float(image), tensors[f"vae.input.{i}"])


@pytest.mark.parametrize("vit_source", ["original", "vae_resized"])
@pytest.mark.parametrize("targets", [1, 3])
def test_length_is_exact_without_decoding(shard_folder, sequence_format, tokenizer, packing, vit_source, targets):
    config = dataclasses.replace(packing, vit_source=vit_source, targets_per_sample=targets).without_dropout()
    shards = ShardSet(shard_folder)
    for i, entry in enumerate(shards.index[:24]):
        builder = SequenceBuilder(sequence_format)
        add_sample(builder, shards.read(i), tokenizer, config, generator(i))
        assert builder.length == sample_length(entry, sequence_format, tokenizer, config)
        layout = tuple(split.length for split in builder.build().splits)
        assert layout == sample_layout(entry, sequence_format, tokenizer, config)


def test_splits_in_order_and_dropped_ones_keep_positions(sequence_format, tokenizer, packing):
    sample = make_sample(2)

    def splits(**changes):
        builder = SequenceBuilder(sequence_format)
        add_sample(builder, sample, tokenizer, dataclasses.replace(packing, **changes), generator(0))
        return [(split.kind.name, split.image, split.position) for split in builder.build().splits]

    full = splits(instruction_dropout=0, targets_per_sample=2)
    words = len(sample.instruction) + 2
    assert full == [
        ("VAE", 0, 0),
        ("VIT", 0, 1),
        ("VAE", 1, 2),
        ("VIT", 1, 3),
        ("TEXT", None, 4),
        ("TARGET", None, 4 + words),
        ("TARGET", None, 4 + words),
    ]
    assert splits(instruction_dropout=1) == [*full[:4], ("TARGET", None, 4)]
    assert splits(instruction_dropout=0, vae_dropout=1) == [full[1], *full[3:6]]
    assert splits(instruction_dropout=0, vit_dropout=1) == [full[0], full[2], *full[4:6]]


def test_draws_depend_only_on_the_seed(sequence_format, tokenizer, packing):
    sample = make_sample(1)
    config = dataclasses.replace(packing, targets_per_sample=2)
    one, two, other = (prepare_sample(sample, sequence_format, tokenizer, config, generator(s)) for s in (1, 1, 2))
    assert one.timestep_logits == two.timestep_logits != other.timestep_logits
    dropped = dataclasses.replace(config, instruction_dropout=1.0, vit_dropout=1.0)
    assert (
        prepare_sample(sample, sequence_format, tokenizer, dropped, generator(1)).timestep_logits == one.timestep_logits
    )


def test_dropout_and_timestep_statistics(sequence_format, tokenizer, packing):
    sample = make_sample(1)
    config = dataclasses.replace(packing, instruction_dropout=0.25, vit_dropout=0.5)
    prepared = [prepare_sample(sample, sequence_format, tokenizer, config, generator("s", i)) for i in range(1000)]
    assert np.mean([p.ids is None for p in prepared]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([p.references[0].vit is None for p in prepared]) == pytest.approx(0.5, abs=0.05)
    assert not any(p.references[0].vae is None for p in prepared)
    logits = [p.timestep_logits[0] for p in prepared]
    assert np.mean(logits) == pytest.approx(0, abs=0.1)
    assert np.std(logits) == pytest.approx(1, abs=0.07)


def test_vit_image_from_the_resized_vae_image(sequence_format, tokenizer, packing):
    sample = Sample(key="a", references=(encode(100, 60),), instruction="a", target=encode(16, 16))
    original, resized = (
        prepare_sample(
            sample, sequence_format, tokenizer, dataclasses.replace(packing, vit_source=s), generator(0)
        ).references[0]
        for s in ("original", "vae_resized")
    )
    assert torch.equal(original.vae, resized.vae)
    assert torch.equal(resized.vit, resized.vae)  # same limits and stride: nothing left to resize
    drop = dataclasses.replace(packing, vit_source="vae_resized", vae_dropout=1.0)
    assert torch.equal(
        prepare_sample(sample, sequence_format, tokenizer, drop, generator(0)).references[0].vit, resized.vit
    )


def test_tokens_in_boxes():
    assert tokens_in([(0.0, 0.0, 0.5, 1.0)], 2, 4).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert tokens_in([], 2, 2).sum() == 0
    small = (0.3, 0.3, 0.4, 0.4)  # holds the centre (0.375, 0.375) of token (1, 1)
    assert tokens_in([small], 4, 4).nonzero().tolist() == [[1, 1]]


def test_candidates_are_stored_as_is_target_and_read_under_the_former_key_too():
    candidate = Candidate(box=(0.0, 0.0, 0.5, 1.0), is_target=True, name="cat")
    stored = {"box": (0.0, 0.0, 0.5, 1.0), "is_target": True, "name": "cat"}
    former = {"box": stored["box"], "meant": True, "name": "cat"}
    assert candidate.to_json() == stored
    assert parse_candidates([[stored, former]]) == ((candidate, candidate),)
    with pytest.raises(TypeError, match="must be an object with `box` and `is_target`"):
        parse_candidates([[{**stored, "meant": True}]])


def test_boxes_of_targets_label_the_tokens_of_both_splits(sequence_format, tokenizer, packing):
    builder = SequenceBuilder(sequence_format)
    for number in (1, 4):  # with and without candidates
        add_sample(builder, make_sample(number, references=1), tokenizer, packing, generator(0))
    sequence = builder.build()
    sample = make_sample(1, references=1)
    targets = [c.box for c in sample.candidates[0] if c.is_target]
    for kind in (SplitKind.VIT, SplitKind.VAE):
        first, second = sequence.splits_of(kind)
        known, unknown = (sequence.reference_labels[s.content.start : s.content.stop] for s in (first, second))
        assert set(known.tolist()) == {0.0, 1.0}
        assert known.bool().equal(tokens_in(targets, *first.grid).flatten())
        assert unknown.isnan().all()
    assert sequence.reference_labels[sequence.vit_index].nan_to_num(-1).equal(sequence.vit_labels.nan_to_num(-1))
    assert sequence.reference_labels[~sequence.reference_tokens].isnan().all()


@pytest.mark.parametrize("names", [None, ["nobody"], [""], [], "fox", [1], {"fox": 1}, ["fox", "fox"]])
def test_names_that_are_not_of_the_instruction_are_none(names, sequence_format, tokenizer, packing):
    sample = dataclasses.replace(make_sample(1), instruction="draw the fox", metadata={"names": names})
    assert prepare_sample(sample, sequence_format, tokenizer, packing, generator(0)).names == ()


def test_names_reach_sequence_and_prompt_with_the_instruction(sequence_format, tokenizer, packing):
    sample = dataclasses.replace(
        make_sample(1, references=1), instruction="draw the fox and a cat", metadata={"names": ["the fox", "a cat"]}
    )
    builder = SequenceBuilder(sequence_format)
    for dropout in (0.0, 1.0):
        settings = dataclasses.replace(packing, instruction_dropout=dropout)
        add_sample(builder, sample, tokenizer, settings, generator(0))
    pack = builder.build()
    assert len(pack.names[0]) == 2
    assert pack.names[1] == ()
    prompts = prompts_of(pack)
    assert [prompt.names for prompt in prompts] == list(pack.names)
    ids = prompts[0].text_ids
    assert [tokenizer.decode(ids[first:stop]).strip() for first, stop in prompts[0].names] == ["the fox", "a cat"]
    assert pack_contexts(sequence_format, prompts)[0].names == pack.names
    assert pack_contexts(sequence_format, prompts, text=False)[0].names == ((), ())


def test_broken_sample_leaves_the_builder_alone(sequence_format, tokenizer, packing):
    builder = SequenceBuilder(sequence_format)
    with pytest.raises(BrokenSampleError):
        add_sample(builder, dataclasses.replace(make_sample(2), target=b"x"), tokenizer, packing, generator(0))
    with pytest.raises(BrokenSampleError, match="candidates"):
        add_sample(builder, dataclasses.replace(make_sample(2), candidates=()), tokenizer, packing, generator(0))
    assert builder.length == 0
    assert builder.build().num_samples == 0


def test_settings_are_checked(sequence_format):
    limits = ResizeLimits(max_size=72, min_size=16)
    with pytest.raises(UserError, match=r"packing\.vae_resize\.max_size is 72.* at most 64"):
        PackingConfig(vae_resize=limits, vit_resize=limits).check(sequence_format)
    with pytest.raises(UserError, match="instruction_dropout is 2"):
        PackingConfig(instruction_dropout=2)
    with pytest.raises(UserError, match="min_size 600 and max_size 512"):
        ResizeLimits(max_size=512, min_size=600)
    assert (PackingConfig().token_budget, PackingConfig().instruction_dropout) == (26496, 0.1)
