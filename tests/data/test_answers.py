"""Samples with an answer: labelled text on disk, in packs, and in the loss."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from data_helpers import encode, make_sample

from scone_pl.data.fields import FieldNames
from scone_pl.data.inputs import open_input
from scone_pl.data.packing import prepare_sample, sample_layout
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shard_writer import write_shards
from scone_pl.data.shards import ShardSet
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import SplitKind


def answered(number, *, target=False, references=1):
    sample = make_sample(number, references)
    return dataclasses.replace(sample, answer="y" * (1 + number % 3), target=sample.target if target else b"")


SAMPLES = [answered(0), answered(1, target=True), make_sample(2), answered(3, references=0), answered(4, references=2)]


@pytest.fixture
def shards(tmp_path):
    write_shards(SAMPLES, tmp_path / "set", progress=False)
    return ShardSet(tmp_path / "set")


def test_answers_survive_the_shards_and_samples_without_look_as_ever(shards):
    assert [shards.read(i) for i in range(5)] == SAMPLES
    assert [entry.answer for entry in shards.index] == [s.answer for s in SAMPLES]
    lines = (shards.storage.path / "index.jsonl").read_text().splitlines()
    assert ["answer" in json.loads(line) for line in lines] == [True, True, False, True, True]


def test_the_index_tells_the_length_of_what_is_packed(shards, sequence_format, tokenizer, packing):
    for entry, sample in zip(shards.index, SAMPLES, strict=True):
        builder = SequenceBuilder(sequence_format)
        prepared = prepare_sample(
            sample, sequence_format, tokenizer, packing.without_dropout(), np.random.default_rng(0)
        )
        prepared.append_to(builder)
        lengths = [split.length for split in builder.build().splits]
        assert tuple(lengths) == sample_layout(entry, sequence_format, tokenizer, packing)


def test_an_answer_is_labelled_and_follows_its_question(sequence_format, tokenizer, packing):
    builder = SequenceBuilder(sequence_format)
    for sample in SAMPLES[:2]:
        prepare_sample(
            sample, sequence_format, tokenizer, packing.without_dropout(), np.random.default_rng(0)
        ).append_to(builder)
    pack = builder.build()
    kinds = [[s.kind for s in splits] for splits in pack.by_sample]
    text, vit, vae = SplitKind.TEXT, SplitKind.VIT, SplitKind.VAE
    assert kinds[0] == [vit, text, text]  # understanding alone: no latents
    assert kinds[1][:4] == [vae, vit, text, text]
    assert kinds[1][4:] == [SplitKind.TARGET] * packing.targets_per_sample
    ends = tokenizer.special.end_text
    wanted = [*tokenizer.encode("y"), ends, *tokenizer.encode("yy"), ends]
    assert pack.label_ids.tolist() == wanted
    texts = [s for s in pack.splits if s.kind == text]
    assert [s.labelled for s in texts] == [False, True, False, True]
    instructions = [place for s in texts[::2] for place in range(s.start, s.stop)]
    assert pack.instruction_index.tolist() == instructions


def test_a_question_is_not_dropped(sequence_format, tokenizer, packing):
    always = dataclasses.replace(packing, instruction_dropout=1.0)
    kept = prepare_sample(SAMPLES[0], sequence_format, tokenizer, always, np.random.default_rng(0))
    dropped = prepare_sample(SAMPLES[2], sequence_format, tokenizer, always, np.random.default_rng(0))
    assert kept.ids is not None
    assert dropped.ids is None


def test_jsonl_lines_with_an_answer_need_no_target(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(16, 16))
    lines = [
        {"input_images": ["a.png"], "instruction": "what", "answer": "star"},
        {"input_images": ["a.png"], "instruction": "what", "reply": "ring"},
        {"input_images": ["a.png"], "instruction": "what", "answer": ["star"]},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = [s for _, s in open_input(str(tmp_path / "list.jsonl")).read(0, 3)]
    assert (found[0].answer, found[0].target) == ("star", b"")
    assert [f.reason for f in found[1:]] == ["missing target", "wrong field"]
    named = open_input(str(tmp_path / "list.jsonl"), fields=FieldNames(answer="reply"))
    assert [s.answer for _, s in named.read(1, 2)] == ["ring"]


def test_an_answer_of_another_type_is_a_fault(shards):
    from scone_pl.data.members import _from_json

    with pytest.raises(ValueError, match="wrong type"):
        _from_json(b'{"instruction": "x", "answer": 3}', "s0.json")
    assert issubclass(BrokenSampleError, ValueError)


@pytest.mark.parametrize("chosen", [[0, 3, 4], [1], [2], [0, 1, 2, 3, 4]])
def test_every_mixture_trains(chosen, sequence_format, tokenizer, packing, shards):
    """Packs of answers alone, of targets alone, and of both have finite losses and touch the right expert."""
    from scone_pl.data.tokenizer import byte_tokenizer
    from scone_pl.model.config import mini_photo
    from scone_pl.model.initialize import random_model
    from scone_pl.training import losses

    config = dataclasses.replace(
        mini_photo(byte_tokenizer().vocab_size), latent_positions_per_side=sequence_format.latent_positions_per_side
    )
    model = random_model(config, 0).train()
    sequence_format = model.config.sequence_format(tokenizer.special)
    sizes = dataclasses.replace(
        packing.without_dropout(),
        vae_resize=type(packing.vae_resize)(max_size=32, min_size=16),
        vit_resize=type(packing.vit_resize)(max_size=28, min_size=14),
    )
    builder = SequenceBuilder(sequence_format)
    for i in chosen:
        prepare_sample(SAMPLES[i], sequence_format, tokenizer, sizes, np.random.default_rng(i)).append_to(builder)
    pack = builder.build()
    clean = model.encode_images(pack)
    result = losses.flow_matching(model, pack, clean, torch.zeros_like(clean))
    flow, text = result.squared_error.sum(), losses.text_cross_entropy(result.output, pack)
    (flow + text).backward()
    with_text, with_target = bool({0, 1, 3, 4} & set(chosen)), bool({1, 2} & set(chosen))
    assert (text.item() > 0, flow.item() > 0) == (with_text, with_target)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert all(torch.isfinite(g).all() for g in gradients.values())
    assert bool(gradients["language_model.lm_head.weight"].any()) == with_text
    assert bool(gradients["llm2vae.weight"].any()) == with_target
