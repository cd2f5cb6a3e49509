"""Encoded images from http(s) and data URLs, limited in size and time."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote_to_bytes, urlsplit

from scone_pl import __version__
from scone_pl.errors import UserError

MAX_BYTES = 64 << 20
"""Larger images are refused; before they are read where the server says how large they are."""
TIMEOUT = 30.0
"""Seconds without a byte after which a server is given up."""
DEADLINE = 120.0
"""Seconds for one image in total."""
_CHUNK = 1 << 16


def is_url(source: str) -> bool:
    """Whether a text is a URL: http, https, data, or of a scheme that `read_url` refuses."""
    scheme, colon, rest = source.partition(":")
    return bool(colon) and (scheme.lower() == "data" or (rest.startswith("//") and scheme.isalnum()))


def read_url(url: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes at a URL.

    Args:
        url: http://, https:// or data:.
        max_bytes: more are refused.

    Raises:
        UserError: another scheme, a failed request, or too many bytes.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _read_data_url(url, max_bytes)
    if scheme not in ("http", "https"):
        raise UserError(f"{url:.80}: images are read from http, https and data URLs, not from {scheme}")
    name = shown(url)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"scone_pl/{__version__}"})
        with _opener().open(request, timeout=TIMEOUT) as response:
            return _read_body(response, name, max_bytes)
    except HTTPError as error:
        raise UserError(f"{name}: the server answers {error.code} {error.reason}") from None
    except URLError as error:
        raise UserError(f"{name}: cannot be reached ({error.reason}); save the image and give its path") from None
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({error}); save the image and give its path") from None


def shown(url: str) -> str:
    """A URL for messages: without its query and credentials, and not longer than a line."""
    if url[:5].lower() == "data:":
        return f"{url.partition(',')[0]:.40},..."
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('?')[0]:.80}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise UserError(f"{shown(req.full_url)}: redirects to {newurl:.80}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _read_body(response: IO[bytes], name: str, max_bytes: int) -> bytes:
    length = response.headers.get("Content-Length", "")  # type: ignore[attr-defined]  # urllib's own type
    expected = int(length) if length.isdecimal() else None
    if expected is not None and expected > max_bytes:
        raise UserError(f"{name}: {expected} bytes are too many for an image from a URL (at most {max_bytes})")
    started, chunks, size = time.monotonic(), [], 0
    while chunk := response.read(_CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise UserError(f"{name}: more than {max_bytes} bytes, too many for an image from a URL")
        if time.monotonic() - started > DEADLINE:
            raise UserError(f"{name}: not read after {DEADLINE:.0f} seconds; save the image and give its path")
    if expected is not None and size < expected:
        raise UserError(f"{name}: ended after {size} of {expected} bytes; try again")
    return b"".join(chunks)


def _read_data_url(url: str, max_bytes: int) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError(f"{url:.40}: not a data URL; it has the form data:image/png;base64,...")
    if len(body) > 2 * max_bytes:
        raise UserError(f"{shown(url)}: too many bytes for an image from a URL (at most {max_bytes})")
    try:
        data = unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            data = base64.b64decode(b"".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{shown(url)}: damaged base64 ({error})") from None
    if len(data) > max_bytes:
        raise UserError(f"{shown(url)}: {len(data)} bytes are too many for an image from a URL (at most {max_bytes})")
    return data
