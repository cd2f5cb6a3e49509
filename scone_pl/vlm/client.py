"""Client of an OpenAI-compatible service: retries transient errors, stops at once on configuration errors."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from scone_pl.files import replace_surrogates
from scone_pl.vlm.endpoint import EndpointConfig
from scone_pl.vlm.secret import Secret

_RETRYABLE = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
_FATAL = frozenset((301, 302, 303, 307, 308, 401, 402, 403, 404, 405))
_MODERATION = re.compile(r"moderat|content.?(?:policy|filter)", re.IGNORECASE)
_MAX_RETRY_AFTER = 900.0
_MAX_BODY_BYTES = 4 << 20
_MAX_IMAGE_BYTES = 64 << 20
_MAX_QUOTED = 200
T = TypeVar("T")


class CallFailedError(Exception):
    """A question could not be answered; others may be."""


class StopJudgingError(Exception):
    """No question can be answered: invalid key, unknown model, exhausted quota."""


class _RetryError(Exception):
    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Reply:
    """The service's answer."""

    text: str
    answered_by: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)


class JudgeClient:
    """A session with the service: `async with JudgeClient(config) as client`."""

    def __init__(self, config: EndpointConfig) -> None:
        """Reads the key from the environment, see `EndpointConfig.key`."""
        self.config = config
        self.retries = 0
        """Number of retried requests."""
        self._key = config.key()
        self._secret = Secret(self._key)
        self._proxy = _proxy(config.url)
        self._session: aiohttp.ClientSession | None = None
        self._not_before = 0.0

    async def __aenter__(self) -> JudgeClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.config.concurrency),
            timeout=aiohttp.ClientTimeout(total=self.config.timeout),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, content: list[dict[str, Any]], parameters: Mapping[str, Any] | None = None) -> Reply:
        """Sends one user message and returns the answer, retrying transient errors.

        Args:
            content: parts of the message, text and images.
            parameters: fields of the request; None = `EndpointConfig.parameters`.

        Raises:
            CallFailedError: no answer after `max_tries` attempts, or the service rejects this message.
            StopJudgingError: the service rejects every message.
        """
        body = {"model": self.config.model, **(self.config.parameters if parameters is None else parameters)}
        body["messages"] = [{"role": "user", "content": content}]
        data = json.dumps(body).encode()

        async def send() -> Reply:
            headers = {"Content-Type": "application/json"}
            return self._parse(*await self._post(self.config.url, data, headers))

        return await self._retrying(send)

    async def edit(self, images: Sequence[bytes], prompt: str) -> bytes:
        """Has images edited, or without any a new one made, and returns the result, still encoded; retries as `ask`.

        Args:
            images: PNG files.
            prompt: what to change.

        Raises:
            CallFailedError, StopJudgingError: see `ask`.
        """
        fields = {"model": self.config.model, "prompt": prompt, "response_format": "b64_json"}
        fields |= {name: str(value) for name, value in self.config.parameters.items()}
        base = self.config.base_url.rstrip("/")

        async def send() -> bytes:
            if not images:
                headers = {"Content-Type": "application/json"}
                url, body = f"{base}/images/generations", json.dumps({**fields, **self.config.parameters}).encode()
                return self._parse_image(url, *await self._post(url, body, headers))
            form = aiohttp.FormData(fields, default_to_multipart=True)
            name = "image" if len(images) == 1 else "image[]"
            for number, image in enumerate(images):
                form.add_field(name, image, filename=f"{number}.png", content_type="image/png")
            url = f"{base}/images/edits"
            return self._parse_image(url, *await self._post(url, form, {}))

        return await self._retrying(send)

    async def _retrying(self, send: Callable[[], Awaitable[T]]) -> T:
        """The result of `send`, repeated after transient errors."""
        for number in range(self.config.max_tries):
            await self._wait_until_allowed()
            try:
                return await send()
            except _RetryError as error:
                reason = str(error)
                if number + 1 == self.config.max_tries:
                    raise CallFailedError(f"{reason}, {self.config.max_tries} tries") from None
                self.retries += 1
                pause = self._pause(number)
                if error.after is not None:
                    # Retry-After applies to all callers.
                    self._not_before = max(self._not_before, time.monotonic() + error.after)
                    # Plus some jitter, so that they do not all retry at once.
                    pause = max(pause - error.after, 0.1 * pause)
                await asyncio.sleep(pause)
        raise AssertionError

    def _pause(self, number: int) -> float:
        limit = min(self.config.longest_wait, self.config.first_wait * 2.0**number)
        return limit * random.uniform(0.5, 1.0)

    async def _wait_until_allowed(self) -> None:
        while (remaining := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(remaining)

    async def _post(
        self, url: str, data: bytes | aiohttp.FormData, headers: Mapping[str, str]
    ) -> tuple[int, bytes, float | None]:
        """Status, body and Retry-After of the answer."""
        if self._session is None:
            raise RuntimeError("use `async with`")
        try:
            async with self._session.post(
                url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                raw = await _read(response, _MAX_BODY_BYTES if isinstance(data, bytes) else _MAX_IMAGE_BYTES)
                return response.status, raw, _retry_after(response.headers.get("Retry-After"))
        except asyncio.TimeoutError:
            raise _RetryError(f"no answer within {self.config.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _RetryError(f"connection lost ({type(error).__name__})") from None

    def _body(self, url: str, status: int, raw: bytes, after: float | None) -> tuple[dict[str, Any], str]:
        """The JSON object of an answer that reports no error, and its text."""
        text = raw.decode(errors="replace")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        error = body.get("error") if isinstance(body, dict) else None
        if status != 200 or error:
            self._raise_error(url, status, error, text, after)
        if not isinstance(body, dict):
            raise _RetryError(f"not JSON: {self._secret.mask_error(text, _MAX_QUOTED)!r}")
        return body, text

    def _parse_image(self, url: str, status: int, raw: bytes, after: float | None) -> bytes:
        body, text = self._body(url, status, raw, after)
        try:
            return base64.b64decode(body["data"][0]["b64_json"], validate=True)
        except (KeyError, IndexError, TypeError, ValueError):
            raise _RetryError(f"no image: {self._secret.mask_error(text, _MAX_QUOTED)!r}") from None

    def _parse(self, status: int, raw: bytes, after: float | None) -> Reply:
        body, text = self._body(self.config.url, status, raw, after)
        try:
            choice = body["choices"][0]
            message = choice["message"]
            answer = message.get("content") or message.get("refusal") or ""
            if isinstance(answer, list):
                answer = "".join(part.get("text", "") for part in answer)
            if not isinstance(answer, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _RetryError(f"no chat completion: {self._secret.mask_error(text, _MAX_QUOTED)!r}") from None
        return Reply(
            text=self._secret.mask(replace_surrogates(answer)),
            answered_by=self._secret.mask(str(body.get("model") or "")),
            finish_reason=self._secret.mask(str(choice.get("finish_reason") or "")),
            usage=_counts(body.get("usage")),
        )

    def _raise_error(self, url: str, status: int, error: Any, text: str, after: float | None) -> None:
        """Raises the exception for an error response."""
        details = error if isinstance(error, dict) else {"message": error or text}
        code = str(details.get("code") or details.get("type") or "")
        short_code, message = (
            self._secret.mask_error(text, _MAX_QUOTED) for text in (code, str(details.get("message") or ""))
        )
        reason = f"status {status}{f' {short_code}' if short_code else ''}: {message}"
        if status == 403 and _MODERATION.search(reason):  # concerns this question only
            raise CallFailedError(reason)
        if status in _FATAL or code in ("insufficient_quota", "invalid_api_key", "model_not_found"):
            raise StopJudgingError(
                f"the {self.config.role} at {url} refuses ({reason}); check {self.config.option}.base_url, "
                f"{self.config.option}.model, the account, and the key in ${self.config.api_key_env}"
            )
        if status in _RETRYABLE or (status == 200 and "content" not in code):
            if after is not None and after > _MAX_RETRY_AFTER:
                raise StopJudgingError(
                    f"the {self.config.role} at {url} asks to retry after {after:.0f} s ({reason}); run the same "
                    "command then"
                )
            raise _RetryError(reason, after)
        raise CallFailedError(reason)


def _proxy(url: str) -> str | None:
    """The proxy for a URL from the environment. aiohttp's `trust_env` would also send credentials from ~/.netrc."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (seconds or a date); None if it is missing or invalid."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        raw += chunk
        if len(raw) > limit:
            raise _RetryError(f"an answer of more than {limit} bytes")
    return bytes(raw)


def _counts(usage: Any) -> dict[str, Any]:
    """The valid token counts of an answer."""
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details")
    counts = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cached_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
    }
    return {name: count for name, count in counts.items() if type(count) is int and count >= 0}
