"""Tokenizers: the published Qwen2 tokenizer, and two small ones for mini models.

All three are stored as `tokenizer.json`. Special tokens in text are never recognised: user text cannot produce the
tokens that frame splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from scone_pl.errors import UserError
from scone_pl.files import parse_json, read_json, read_text
from scone_pl.model.bases import base_of
from scone_pl.model.sequence import Names, SpecialTokens

SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
_UNKNOWN = "<unk>"


class Tokenizer:
    """Text to token ids and back."""

    special_tokens: ClassVar[tuple[str, ...]] = SPECIAL_TOKENS
    """What the vocabulary must have; never recognised in text."""
    special: SpecialTokens
    vocab_size: int
    """Largest id + 1; the minimum number of rows of the model's embedding."""

    def __init__(self, backend: tokenizers.Tokenizer, origin: str = "the tokenizer") -> None:
        """Wraps a `tokenizers` tokenizer.

        Args:
            backend: must have all `special_tokens`.
            origin: its folder, for messages.

        Raises:
            UserError: a special token is missing or shares its id with another token, or the tokenizer drops bytes or
                is stochastic.
        """
        special = {token: id_ for token in self.special_tokens if (id_ := backend.token_to_id(token)) is not None}
        if missing := [token for token in self.special_tokens if token not in special]:
            raise UserError(
                f"{origin}: the tokenizer lacks {' '.join(missing)}; use the tokenizer files that come with the "
                "checkpoint"
            )
        _check_vocabulary(backend, special, origin)
        # `tokenizer.json` may enable them; instructions are neither truncated nor padded.
        backend.no_truncation()
        backend.no_padding()
        # A token listed without "special": true would be recognised inside instructions.
        backend.add_special_tokens(list(self.special_tokens))
        backend.encode_special_tokens = True
        self.vocab_size = max(backend.get_vocab().values()) + 1
        self.origin = origin
        self._backend = backend
        unknown = getattr(backend.model, "unk_token", None)
        self._unknown_id = backend.token_to_id(unknown) if unknown is not None else None
        self.special = self._template(special)

    def _template(self, special: dict[str, int]) -> SpecialTokens:
        """What frames splits, from the ids of `special_tokens`."""
        return SpecialTokens(*special.values())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without special tokens.

        Raises:
            UserError: a word is not in a word tokenizer's vocabulary.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._unknown_id is not None and self._unknown_id in encoding.ids:
            start, stop = encoding.offsets[encoding.ids.index(self._unknown_id)]
            raise UserError(
                f"{self.origin}: the word {text[start:stop]!r} in {text!r} is not in this model's vocabulary of "
                f"{self.vocab_size} words; reword the instruction"
            )
        return encoding.ids

    def spans(self, text: str, phrases: Sequence[str]) -> Names:
        """The tokens of `encode(text)` that make each of `phrases`; empty unless all occur in `text`, in this order."""
        offsets, spans, position = self._backend.encode(text, add_special_tokens=False).offsets, [], 0
        for phrase in phrases:
            start = text.find(phrase, position)
            position = start + len(phrase)
            inside = [i for i, (first, stop) in enumerate(offsets) if first < position and stop > start]
            if start < 0 or not inside:
                return ()
            spans.append((inside[0], inside[-1] + 1))
        return tuple(spans)

    def check_embedding(self, rows: int) -> None:
        """Raises `UserError` if the embedding has too few `rows`."""
        if self.vocab_size > rows:
            raise UserError(
                f"{self.origin}: the tokenizer has {self.vocab_size} ids but the model embeds {rows}; use the "
                "tokenizer files that belong to these weights"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` into `folder`, which is created if it does not exist."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._backend.save(str(Path(folder) / "tokenizer.json"))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json`, or Qwen2's `vocab.json` + `merges.txt`, from `folder`, for its base model.

        Raises:
            UserError: no or unreadable tokenizer files, or missing special tokens.
        """
        kind: type[Tokenizer] = import_module(base_of(Path(folder)).tokenizer).Tokenizer
        return kind.read(Path(folder))

    @classmethod
    def read(cls, folder: Path) -> Tokenizer:
        """`from_folder` for a base model that is known already."""
        return cls(read_backend(folder), str(folder))

    def __reduce__(self) -> tuple[object, ...]:
        # The backend's own pickling loses `encode_special_tokens`.
        return _restore, (type(self), self._backend.to_str(), self._further_arguments())

    def _further_arguments(self) -> tuple[str, ...]:
        """Of the constructor, for pickling."""
        return (self.origin,)


def _restore(kind: type[Tokenizer], state: str, further: tuple[str, ...]) -> Tokenizer:
    return kind(tokenizers.Tokenizer.from_str(state), *further)


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """See `Tokenizer.from_folder`."""
    file = folder / "tokenizer.json"
    if file.exists():
        text = read_text(file)
        parse_json(text, str(file), dict)
        return _readable(file, lambda: tokenizers.Tokenizer.from_str(text))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _slow_files(folder)
    raise UserError(f"{folder}: no tokenizer.json (nor vocab.json and merges.txt) here; give the checkpoint folder")


def _slow_files(folder: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer, Qwen2Tokenizer

    vocabulary = read_json(folder / "vocab.json", dict)
    for token, id_ in vocabulary.items():
        if type(id_) is not int or not 0 <= id_ < 2**31:
            raise UserError(f"{folder / 'vocab.json'}: {token!r:.40} has the id {id_!r:.40}, no whole number from 0")
    read_text(folder / "merges.txt")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            read_json(folder / name, dict)
    # Without tokenizer_config.json AutoTokenizer cannot know that these two files are Qwen2's.
    kind = AutoTokenizer if (folder / "tokenizer_config.json").exists() else Qwen2Tokenizer
    return _readable(
        folder / "vocab.json",
        lambda: kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False).backend_tokenizer,
    )


def _readable(file: Path, read: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    """`read()`, checked to be a working tokenizer; otherwise a `UserError` that names `file`."""
    try:
        backend = read()
        backend.encode("a", add_special_tokens=False)
    except BaseException as error:
        # The library raises bare `Exception`, and on a Rust panic a `BaseException`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{file}: not a readable tokenizer ({_one_line(error)}); fetch it again") from None
    return backend


def _check_vocabulary(backend: tokenizers.Tokenizer, special: dict[str, int], origin: str) -> None:
    vocabulary = backend.get_vocab()
    for token, id_ in vocabulary.items():
        for name, taken in special.items():
            if id_ == taken and token != name:
                raise UserError(
                    f"{origin}: the tokenizer gives the id {id_} to {name} and to {token!r:.40}; fetch it again"
                )
    model = backend.model
    if not isinstance(model, models.BPE):
        return
    if model.dropout:
        raise UserError(f"{origin}: the tokenizer splits words at random (dropout {model.dropout}); set it to null")
    of_bytes = isinstance(backend.decoder, decoders.ByteLevel)
    lost = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()) if of_bytes else []
    if lost and model.unk_token is None:
        raise UserError(
            f"{origin}: the tokenizer lacks {len(lost)} of the 256 bytes, such as {lost[0]!r}; fetch it again"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def word_tokenizer(words: Iterable[str], *, spelled: bool = False) -> Tokenizer:
    """One id per word, words separated by white space; encoding a word not in `words` is a `UserError`.

    With `spelled`, other words of printable ASCII characters are taken apart: the longest words at their start, then
    the same again.
    """
    return Tokenizer(word_backend(words, SPECIAL_TOKENS, spelled=spelled), "word tokenizer")


def word_backend(words: Iterable[str], special_tokens: Iterable[str], *, spelled: bool = False) -> tokenizers.Tokenizer:
    """See `word_tokenizer`."""
    known = dict.fromkeys((_UNKNOWN, *words))
    if spelled:
        letters = [chr(code) for code in range(33, 127)]
        pieces = [piece for letter in letters for piece in (letter, f"##{letter}")]
        vocabulary = {word: id_ for id_, word in enumerate(dict.fromkeys((*known, *pieces)))}
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=_UNKNOWN))
        backend.decoder = decoders.WordPiece()
    else:
        backend = tokenizers.Tokenizer(
            models.WordLevel({word: id_ for id_, word in enumerate(known)}, unk_token=_UNKNOWN)
        )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(special_tokens))
    return backend


def byte_tokenizer() -> Tokenizer:
    """One id per UTF-8 byte (256 ids and the four special tokens): any text, without a vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({symbol: id_ for id_, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return Tokenizer(backend, "byte tokenizer")
