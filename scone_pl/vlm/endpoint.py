"""Settings of an OpenAI-compatible chat service with a vision-language model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import urlsplit

from scone_pl.errors import UserError
from scone_pl.ranges import check_number, check_whole

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPENAI = "https://api.openai.com/v1"
MAX_SECONDS = 86400.0
"""Limit of waiting times: some systems' sockets and condition variables accept no more."""
MAX_CALLS = 10_000


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """Service, model and retry policy."""

    role: ClassVar[str] = "judge"
    """What the model is, for messages."""
    option: ClassVar[str] = "--judge"
    """Before the names of settings, for messages."""

    model: str = "gpt-4.1"
    """The vision-language model; the published tables use gpt-4.1 (docs/benchmarks.md 3.1)."""
    base_url: str = OPENAI
    """Base URL of an OpenAI-compatible service; `/chat/completions` is appended. Local: http://127.0.0.1:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key. The key itself is never written."""
    concurrency: int = 16
    """Maximum concurrent requests."""
    timeout: float = 180.0
    """Timeout of a request in seconds."""
    max_tries: int = 10
    """Attempts per request, if the service is busy or fails."""
    first_wait: float = 1.0
    """Initial backoff in seconds; doubled after each attempt, with random jitter."""
    longest_wait: float = 120.0
    """Maximum backoff in seconds; a Retry-After header takes precedence."""
    stop_after: int = 20
    """Number of consecutive failed calls after which the run stops."""
    parameters: dict[str, Any] = field(default_factory=lambda: {"max_tokens": 1400})
    """Further fields of the request, such as temperature; the published judge sends max_tokens."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_tries", "stop_after"):
            check_whole(f"{self.role}.{name}", getattr(self, name), minimum=1, maximum=MAX_CALLS)
        for name in ("timeout", "longest_wait"):
            check_number(f"{self.role}.{name}", getattr(self, name), above=0, maximum=MAX_SECONDS)
        check_number(f"{self.role}.first_wait", self.first_wait, minimum=0, maximum=MAX_SECONDS)
        if not _VARIABLE.fullmatch(self.api_key_env):  # not quoted: it may be the key itself
            raise UserError(
                f"{self.role}.api_key_env must be the name of an environment variable, such as OPENAI_API_KEY"
            )
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{self.role}.base_url must look like http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"{self.role}.base_url must have no user, password or query; put the key into ${self.api_key_env}"
            )
        if reserved := {"model", "messages", "stream", "n"} & (self.parameters or {}).keys():
            raise UserError(f"{self.role}.parameters cannot set {reserved.pop()}")

    @property
    def url(self) -> str:
        """URL of requests."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def key(self) -> str | None:
        """The API key from the environment; None for a service that needs none.

        Raises:
            UserError: it is not set and the service is OpenAI's, or it has invalid characters.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and self.base_url.rstrip("/") == OPENAI:
            raise UserError(
                f"${self.api_key_env} is not set: set it to the {self.role}'s API key, or give {self.option}.base_url "
                "of a server that needs none"
            )
        if not all("!" <= letter <= "~" for letter in key):
            raise UserError(f"${self.api_key_env} has characters that no API key has; set it again")
        return key or None
