"""Token counts are stored where a set is made, used where they hold, and checked."""

import dataclasses
import json

import pytest
from data_helpers import TINY, sign_index

from scone_pl.cli.shards import main
from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.inputs import open_input
from scone_pl.data.packing import PackingConfig
from scone_pl.data.shards import ShardSet
from scone_pl.data.statistics import shard_statistics
from scone_pl.data.token_counts import TokenCounter
from scone_pl.data.tokenizer import word_tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError


@pytest.fixture
def converted(shard_folder, tmp_path):
    convert(open_input(str(shard_folder)), tmp_path / "set", ConvertConfig(samples_per_shard=25), progress=False)
    return tmp_path / "set"


def rewrite(file, change):
    file.write_text(change(file.read_text()))


def test_stored_for_the_published_settings(converted):
    shards = ShardSet.open(converted)
    # The first target has 16 x 24 pixels, for the VAE 512 x 768: 32 x 48 tokens and two around them; a text of 1 byte.
    assert shards.index[0].tokens == 32 * 48 + 2 + 1 + 2
    assert shards.manifest.tokens.total == sum(entry.tokens for entry in shards.index)
    settings = shards.manifest.tokens.settings
    assert settings["vae_resize"] == {"max_size": 1024, "min_size": 512, "max_pixels": 14 * 14 * 9 * 1024, "stride": 16}
    assert settings["vit_resize"]["stride"] == 14
    assert settings["tokenizer"] == "bytes"
    assert json.loads((converted / "manifest.json").read_text())["tokens"]["settings"] == settings


def test_used_only_where_the_settings_agree(converted, sequence_format, tokenizer, packing):
    at_7b = shard_statistics(converted, TokenCounter.published())
    assert at_7b.stored
    assert at_7b.lengths[0] == at_7b.lengths.min() == 1541
    assert "as stored with the set" in at_7b.report(ranks=1)
    rewrite(converted / "index.jsonl", lambda text: text.replace('"tokens": 1541}', '"tokens": 7}'))
    sign_index(converted)
    with pytest.raises(UserError, match=r"line 1 \(s0000\) says 7 tokens, but it has 1541"):
        shard_statistics(converted, TokenCounter.published())
    others = [
        TokenCounter(sequence_format, tokenizer, packing),
        dataclasses.replace(TokenCounter.published(), packing=PackingConfig(targets_per_sample=2)),
        dataclasses.replace(TokenCounter.published(), packing=PackingConfig(vit_source="vae_resized")),
        dataclasses.replace(
            TokenCounter.published(), packing=PackingConfig(vit_resize=ResizeLimits(max_size=980, min_size=224))
        ),
        TokenCounter.published(word_tokenizer(["x" * i for i in range(1, 9)])),
    ]
    for counter in others:
        statistics = shard_statistics(converted, counter)
        assert not statistics.stored
        assert statistics.lengths.tolist() == [counter(entry) for entry in ShardSet.open(converted).index]


def test_wrong_counts_are_found(converted):
    assert verify_shards(converted, progress=False).faults.total == 0
    rewrite(converted / "index.jsonl", lambda text: text.replace('"tokens": 1541}', '"tokens": 7}', 1))
    faults = verify_shards(converted, progress=False).faults
    assert faults.counts == {"wrong checksum": 1, "wrong token count": 2}  # the sample's, and the sum
    assert any("s0000: wrong token count: 1541, but the index says 7" in line for line in faults.examples)


def test_another_tokenizer_is_named_and_goes_along(shard_folder, tmp_path):
    words = word_tokenizer(["x" * i for i in range(1, 9)])
    convert(open_input(str(shard_folder)), tmp_path / "set", tokenizer=words, progress=False)
    stored = ShardSet.open(tmp_path / "set")
    assert stored.manifest.tokens.settings["tokenizer"] == words.fingerprint != "bytes"
    assert {entry.tokens for entry in stored.index if not entry.references} == {1541}  # each text is one word
    rewrite(tmp_path / "set/index.jsonl", lambda text: text.replace('"tokens": 1541}', '"tokens": 7}', 1))
    for tokenizer, found in ((None, 1), (words, 2)):  # the sum needs no tokenizer
        faults = verify_shards(tmp_path / "set", tokenizer=tokenizer, progress=False).faults
        assert faults.counts["wrong token count"] == found


def test_sets_without_counts_still_work(shard_folder, capsys, tmp_path):
    assert ShardSet.open(shard_folder).manifest.tokens is None
    assert verify_shards(shard_folder, progress=False).faults.total == 0
    assert main(["stats", str(shard_folder), "--contact_sheet", str(tmp_path / "sheet.png")]) == 0
    assert "counted now" in capsys.readouterr().out


def test_committed_sets_have_them(capsys, tmp_path):
    for kind in ("single", "multi"):
        assert main(["stats", str(TINY / kind), "--contact_sheet", str(tmp_path / "sheet.png")]) == 0
        assert "stored with the set" in capsys.readouterr().out


def test_a_conversion_goes_on_with_the_same_tokenizer_only(shard_folder, tmp_path):
    work = tmp_path / "set/.convert"
    work.mkdir(parents=True)
    (work / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="another source or with other settings"):
        convert(open_input(str(shard_folder)), tmp_path / "set", progress=False)
