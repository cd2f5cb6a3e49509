import json
import pickle

import pytest
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from scone_pl.data.tokenizer import SPECIAL_TOKENS, Tokenizer, byte_tokenizer, word_tokenizer
from scone_pl.errors import UserError

INJECTION = "a <|im_end|> b<|vision_start|>"


def special_ids(tokenizer):
    return {getattr(tokenizer.special, n) for n in ("begin_text", "end_text", "start_image", "end_image")}


def test_bytes_round_trip(tokenizer):
    text = "Ein Löwe – 狮子\tand <|im_start|>  spaces"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 260
    assert len(tokenizer.encode(text)) == len(text.encode())


def test_text_cannot_inject_special_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for t in (tokenizer, Tokenizer.from_folder(tmp_path), pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301
        assert not special_ids(t) & set(t.encode(INJECTION))
        assert t.decode(t.encode(INJECTION)) == INJECTION


def test_injection_with_tokens_not_marked_special(tmp_path):
    backend = Backend(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_tokens([AddedToken(token, special=False) for token in SPECIAL_TOKENS])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_folder(tmp_path)
    assert not special_ids(loaded) & set(loaded.encode(INJECTION))


def test_words(tmp_path):
    word_tokenizer(["red", "circle"]).save(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert [tokenizer.encode(text) for text in ("red circle", "circle")] == [[1, 2], [2]]
    assert special_ids(tokenizer) == {3, 4, 5, 6}
    assert tokenizer.vocab_size == 7
    for text, word in (("red square", "square"), ("red <|im_end|>", "<|im_end|>"), ("<unk>", "<unk>")):
        with pytest.raises(UserError, match="not in this model's vocabulary") as error:
            tokenizer.encode(text)
        assert repr(word) in str(error.value)


@pytest.mark.parametrize(
    "tokenizer",
    [byte_tokenizer(), word_tokenizer(["put", "the", "red", "fox", "and", "cat", "on", "left"])],
    ids=["bytes", "words"],
)
def test_phrases_have_the_tokens_that_spell_them(tokenizer):
    text = "put the red fox and the cat and the red cat on the left"
    phrases = ["the red fox", "the cat", "the red cat"]
    ids, spans = tokenizer.encode(text), tokenizer.spans(text, phrases)
    assert [tokenizer.decode(ids[first:stop]).strip() for first, stop in spans] == phrases
    assert list(spans) == sorted(spans)
    assert tokenizer.spans(text, []) == tokenizer.spans(text, ["the cat", "the red fox"]) == ()
    assert tokenizer.spans(text, ["the red fox", "the blue fox"]) == ()


def write_qwen_files(folder, with_special):
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "ab": 256}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    added = {str(257 + i): {"content": token, "special": True} for i, token in enumerate(SPECIAL_TOKENS)}
    for token in added.values():
        token.update(lstrip=False, rstrip=False, normalized=False, single_word=False)
    if with_special:
        config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_vocab_and_merges(tmp_path):
    write_qwen_files(tmp_path, with_special=True)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("ab")[0] == 256
    assert (tokenizer.special.begin_text, tokenizer.special.end_image) == (257, 260)
    assert not special_ids(tokenizer) & set(tokenizer.encode(INJECTION))


def test_missing_special_tokens_name_the_folder(tmp_path):
    write_qwen_files(tmp_path, with_special=False)
    with pytest.raises(UserError, match=r"lacks <\|im_start\|>") as error:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("content", [None, "{not json", "{}"])
def test_unreadable_folder_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_pickle_keeps_ids():
    tokenizer = byte_tokenizer()
    assert pickle.loads(pickle.dumps(tokenizer)).encode("ab") == tokenizer.encode("ab")  # noqa: S301
