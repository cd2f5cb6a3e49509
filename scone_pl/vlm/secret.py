"""Masks the judge's API key in everything that is shown or written."""

from __future__ import annotations

import base64
import contextlib
import html
import re
import urllib.parse

MASK = "***"
_MIN_LENGTH = 8
"""Shorter keys are not masked: local servers use keys such as `EMPTY` or `1`, which answers may contain."""
_FRAGMENT_LENGTH = 8
"""Minimum length of masked fragments in error messages: services quote keys in part."""
_ESCAPE = re.compile(r"\\u00([0-9a-fA-F]{2})")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}|(?:[0-9a-fA-F]{2}){8,}")
_MAX_DECODINGS = 3
"""Maximum nesting of encodings that are undone."""
_MAX_INPUT = 100_000
"""Characters of an error message that are processed: far more than any message shows after decoding."""


class Secret:
    """An API key, and how to mask it."""

    def __init__(self, key: str | None) -> None:
        self.key = key if key and len(key) >= _MIN_LENGTH else None

    def mask(self, text: str) -> str:
        """`text` with the complete key masked, plain or encoded: for answers, which are otherwise stored verbatim."""
        if self.key is None:
            return text
        encoded = base64.b64encode(self.key.encode()).decode().rstrip("=")
        for variant in (self.key, urllib.parse.quote(self.key, safe=""), html.escape(self.key), encoded):
            text = text.replace(variant, MASK)
        return text

    def mask_error(self, text: str, max_length: int | None = None) -> str:
        """A service's error message with all recognisable fragments of the key masked.

        Fragments of 8 or more characters are masked, also if encoded as URL, JSON, HTML, base64 or hexadecimal digits,
        or nested. Masking precedes truncation.

        Args:
            text: the message.
            max_length: maximum length of the result.
        """
        if self.key is not None:
            text = self._decoded(text[:_MAX_INPUT])
            text = self._mask_fragments(_ENCODED.sub(self._mask_encoded, text))
        return text if max_length is None else text[:max_length]

    def _decoded(self, text: str) -> str:
        for _ in range(_MAX_DECODINGS):
            before = text
            text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).replace("\\/", "/")
            text = html.unescape(urllib.parse.unquote(text))
            if text == before:
                break
        return text

    def _mask_encoded(self, match: re.Match[str]) -> str:
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        hidden = []
        for start in range(4):  # the key may begin at any offset in the encoded text
            part = run[start:]
            part = part[: len(part) // 4 * 4]
            hidden.append(base64.b64decode(part).decode("latin-1") if part else "")
        with contextlib.suppress(ValueError):
            hidden.append(bytes.fromhex(match[0]).decode("latin-1"))
        return MASK if any(self._mask_fragments(text) != text for text in hidden) else match[0]

    def _mask_fragments(self, text: str) -> str:
        key = self.key or ""
        fragments = {key[i : i + _FRAGMENT_LENGTH] for i in range(len(key) - _FRAGMENT_LENGTH + 1)}
        hidden = [False] * len(text)
        for i in range(len(text) - _FRAGMENT_LENGTH + 1):
            if text[i : i + _FRAGMENT_LENGTH] in fragments:
                hidden[i : i + _FRAGMENT_LENGTH] = [True] * _FRAGMENT_LENGTH
        shown = "".join("\0" if masked else character for character, masked in zip(text, hidden, strict=True))
        return re.sub("\0+", MASK, shown)
