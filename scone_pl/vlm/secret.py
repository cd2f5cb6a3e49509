"""Keeps the judge's API key out of everything that is shown or written."""

from __future__ import annotations

import base64
import contextlib
import html
import re
import urllib.parse

MASK = "***"
_SHORTEST_SECRET = 8
"""Characters. Local servers are given keys such as `EMPTY` or `1`, which answers may well contain."""
_PIECE = 8
"""Characters of a key in a row that are masked in error messages: services quote keys in part."""
_ESCAPE = re.compile(r"\\u00([0-9a-fA-F]{2})")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}|(?:[0-9a-fA-F]{2}){8,}")
_ROUNDS = 3
"""Encodings inside each other that are undone."""
_READ = 100_000
"""Characters of a complaint that are looked at: far more than any message shows, whatever decoding makes of them."""


class Secret:
    """An API key, and how to mask it."""

    def __init__(self, key: str | None) -> None:
        self.key = key if key and len(key) >= _SHORTEST_SECRET else None

    def mask(self, text: str) -> str:
        """`text` without the whole key, plain or encoded: for answers, which are otherwise kept as they came."""
        if self.key is None:
            return text
        encoded = base64.b64encode(self.key.encode()).decode().rstrip("=")
        for form in (self.key, urllib.parse.quote(self.key, safe=""), html.escape(self.key), encoded):
            text = text.replace(form, MASK)
        return text

    def mask_error(self, text: str, longest: int | None = None) -> str:
        """A service's complaint with no recognisable part of the key.

        Masked are runs of 8 characters and more of the key, also where the service has encoded it: as a URL, JSON,
        HTML, base64 or hexadecimal digits, or these inside each other. Masking comes before the text is shortened.

        Args:
            text: what the service said.
            longest: characters to keep.
        """
        if self.key is not None:
            text = self._decoded(text[:_READ])
            text = self._without_pieces(_ENCODED.sub(self._masked_if_it_hides_the_key, text))
        return text if longest is None else text[:longest]

    def _decoded(self, text: str) -> str:
        for _ in range(_ROUNDS):
            before = text
            text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).replace("\\/", "/")
            text = html.unescape(urllib.parse.unquote(text))
            if text == before:
                break
        return text

    def _masked_if_it_hides_the_key(self, match: re.Match[str]) -> str:
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        hidden = []
        for start in range(4):  # the key may begin anywhere in what was encoded
            part = run[start:]
            part = part[: len(part) // 4 * 4]
            hidden.append(base64.b64decode(part).decode("latin-1") if part else "")
        with contextlib.suppress(ValueError):
            hidden.append(bytes.fromhex(match[0]).decode("latin-1"))
        return MASK if any(self._without_pieces(text) != text for text in hidden) else match[0]

    def _without_pieces(self, text: str) -> str:
        key = self.key or ""
        pieces = {key[i : i + _PIECE] for i in range(len(key) - _PIECE + 1)}
        hidden = [False] * len(text)
        for i in range(len(text) - _PIECE + 1):
            if text[i : i + _PIECE] in pieces:
                hidden[i : i + _PIECE] = [True] * _PIECE
        shown = "".join("\0" if hide else letter for letter, hide in zip(text, hidden, strict=True))
        return re.sub("\0+", MASK, shown)
