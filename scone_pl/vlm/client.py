"""One question to an OpenAI-compatible chat service: patient with a busy one, quick to give up on a wrong set-up."""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import re
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from scone_pl.evaluation.judge_config import JudgeConfig
from scone_pl.files import replace_surrogates
from scone_pl.vlm.secret import Secret

_BUSY = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))
_HOPELESS = frozenset((301, 302, 303, 307, 308, 401, 402, 403, 404, 405))
_MODERATED = re.compile(r"moderat|content.?(?:policy|filter)", re.IGNORECASE)
_LONGEST_RETRY_AFTER = 900.0
_LONGEST_BODY = 4 << 20
_SHOWN = 200


class CallFailedError(Exception):
    """One question got no answer; others may."""


class StopJudgingError(Exception):
    """No question will get an answer: wrong key, wrong model, no money."""


class _TryAgainError(Exception):
    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Reply:
    """What came back."""

    text: str
    answered_by: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)


class JudgeClient:
    """An open connection to the service: `async with JudgeClient(config) as client`."""

    def __init__(self, config: JudgeConfig) -> None:
        """Reads the key from the environment, see `JudgeConfig.key`."""
        self.config = config
        self.repeated = 0
        """Requests that had to be sent again."""
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

    async def ask(self, content: list[dict[str, Any]]) -> Reply:
        """Sends one user message and returns the answer, trying again while there is hope.

        Args:
            content: parts of the message, text and images.

        Raises:
            CallFailedError: no answer after `max_tries`, or the service refuses this message.
            StopJudgingError: the service refuses every message.
        """
        body = {"model": self.config.model, **self.config.parameters}
        body["messages"] = [{"role": "user", "content": content}]
        data = json.dumps(body).encode()
        for number in range(self.config.max_tries):
            await self._wait_turn()
            try:
                return await self._once(data)
            except _TryAgainError as error:
                reason = str(error)
                if number + 1 == self.config.max_tries:
                    raise CallFailedError(f"{reason}, {self.config.max_tries} tries") from None
                self.repeated += 1
                pause = self._pause(number)
                if error.after is not None:
                    # All callers wait: the service has said that it takes no more from us until then.
                    self._not_before = max(self._not_before, time.monotonic() + error.after)
                    # On top of it only a little, lest they all come back at once.
                    pause = max(pause - error.after, 0.1 * pause)
                await asyncio.sleep(pause)
        raise AssertionError

    def _pause(self, number: int) -> float:
        longest = min(self.config.longest_wait, self.config.first_wait * 2.0**number)
        return longest * random.uniform(0.5, 1.0)

    async def _wait_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def _once(self, data: bytes) -> Reply:
        if self._session is None:
            raise RuntimeError("use `async with`")
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(
                self.config.url, data=data, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                raw = await _read(response)
                status, after = response.status, _retry_after(response.headers.get("Retry-After"))
        except asyncio.TimeoutError:
            raise _TryAgainError(f"no answer within {self.config.timeout:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _TryAgainError(f"connection lost ({type(error).__name__})") from None
        return self._understand(status, raw, after)

    def _understand(self, status: int, raw: bytes, after: float | None) -> Reply:
        text = raw.decode(errors="replace")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        error = body.get("error") if isinstance(body, dict) else None
        if status != 200 or error:
            self._refuse(status, error, text, after)
        if not isinstance(body, dict):
            raise _TryAgainError(f"not JSON: {self._secret.mask_error(text, _SHOWN)!r}")
        try:
            choice = body["choices"][0]
            message = choice["message"]
            answer = message.get("content") or message.get("refusal") or ""
            if isinstance(answer, list):
                answer = "".join(part.get("text", "") for part in answer)
            if not isinstance(answer, str):
                raise TypeError
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _TryAgainError(f"no chat completion: {self._secret.mask_error(text, _SHOWN)!r}") from None
        return Reply(
            text=self._secret.mask(replace_surrogates(answer)),
            answered_by=self._secret.mask(str(body.get("model") or "")),
            finish_reason=self._secret.mask(str(choice.get("finish_reason") or "")),
            usage=_counts(body.get("usage")),
        )

    def _refuse(self, status: int, error: Any, text: str, after: float | None) -> None:
        """Raises what a refusal means."""
        said = error if isinstance(error, dict) else {"message": error or text}
        code = str(said.get("code") or said.get("type") or "")
        shown, message = (self._secret.mask_error(text, _SHOWN) for text in (code, str(said.get("message") or "")))
        reason = f"status {status}{f' {shown}' if shown else ''}: {message}"
        if status == 403 and _MODERATED.search(reason):  # of this question; others may be answered
            raise CallFailedError(reason)
        if status in _HOPELESS or code in ("insufficient_quota", "invalid_api_key", "model_not_found"):
            raise StopJudgingError(
                f"the judge at {self.config.url} refuses ({reason}); check --judge.base_url, --judge.model, the "
                f"account, and the key in ${self.config.api_key_env}"
            )
        if status in _BUSY or (status == 200 and "content" not in code):
            if after is not None and after > _LONGEST_RETRY_AFTER:
                raise StopJudgingError(
                    f"the judge at {self.config.url} asks to come back in {after:.0f} s ({reason}); run the same "
                    "command then"
                )
            raise _TryAgainError(reason, after)
        raise CallFailedError(reason)


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL. aiohttp's own way would also send what ~/.netrc holds."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may hold seconds or a date; None if there is none, or nonsense."""
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


async def _read(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        raw += chunk
        if len(raw) > _LONGEST_BODY:
            raise _TryAgainError(f"an answer of more than {_LONGEST_BODY} bytes")
    return bytes(raw)


def _counts(usage: Any) -> dict[str, Any]:
    """The token counts of an answer."""
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details")
    found = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cached_tokens": details.get("cached_tokens") if isinstance(details, dict) else None,
    }
    return {name: count for name, count in found.items() if type(count) is int and count >= 0}
