"""Settings of the judge."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from scone_pl.errors import UserError
from scone_pl.ranges import check_number, check_whole

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OPENAI = "https://api.openai.com/v1"
MAX_SECONDS = 86400.0
"""Of a time to wait: more than sockets and condition variables take on some systems is no use either."""
MAX_CALLS = 10_000


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Whom to ask, how many at a time, and how patiently."""

    model: str = "gpt-4.1"
    """The vision-language model; the published tables use gpt-4.1 (docs/benchmarks.md 3.1)."""
    base_url: str = OPENAI
    """Of an OpenAI-compatible service: `/chat/completions` is added. A local one: http://127.0.0.1:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key. The key itself is never written anywhere."""
    concurrency: int = 16
    """Calls in flight."""
    timeout: float = 180.0
    """Seconds for one request and its answer."""
    max_tries: int = 10
    """Requests for one answer, when the service is busy, fails or hangs up."""
    first_wait: float = 1.0
    """Seconds after the first failed try; doubled each time, less up to a half at random."""
    longest_wait: float = 120.0
    """Seconds between two tries at most; where the service itself says how long to wait (Retry-After), that counts."""
    max_answers: int = 3
    """Answers to one question, when none of them can be read."""
    stop_after: int = 20
    """Calls that fail one after the other, none succeeding between them, after which the run stops."""
    retry_failed: bool = True
    """Whether a later run asks again what failed in an earlier one."""
    parameters: dict[str, Any] = field(default_factory=lambda: {"max_tokens": 1400})
    """Fields of the request besides model and messages, such as temperature; the published judge sends max_tokens."""
    scene_pf: bool = False
    """OmniContext: ask for PF of scene tasks with the scene wording (the published numbers do not)."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """Whether images are turned as their EXIF orientation says: shown to the judge (the published code turns them), and
    in `evaluate`, given to the model (the published code does not)."""
    plausibility: bool = False
    """Also rate physical plausibility (PHY); it enters no other column."""
    prompts: str | None = None
    """Folder with other prompts; null = the package's."""
    prices: str | None = None
    """YAML of prices; null = the package's `prices.yaml`."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_tries", "max_answers", "stop_after"):
            check_whole(f"judge.{name}", getattr(self, name), minimum=1, maximum=MAX_CALLS)
        for name in ("timeout", "longest_wait"):
            check_number(f"judge.{name}", getattr(self, name), above=0, maximum=MAX_SECONDS)
        check_number("judge.first_wait", self.first_wait, minimum=0, maximum=MAX_SECONDS)
        if not _VARIABLE.fullmatch(self.api_key_env):  # not repeated: it may be the key itself
            raise UserError("judge.api_key_env must be the name of an environment variable, such as OPENAI_API_KEY")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("judge.base_url must look like http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(f"judge.base_url must hold no name, password or query; put a key into ${self.api_key_env}")
        if reserved := {"model", "messages", "stream", "n"} & self.parameters.keys():
            raise UserError(f"judge.parameters can not set {reserved.pop()}")

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    def key(self) -> str | None:
        """The key from the environment; None for a service that needs none.

        Raises:
            UserError: there is none and the service is OpenAI's, or it can not be sent.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and self.base_url.rstrip("/") == OPENAI:
            raise UserError(
                f"${self.api_key_env} is not set: put the judge's key there, or give --judge.base_url of a server "
                "that needs none"
            )
        if not all("!" <= letter <= "~" for letter in key):
            raise UserError(f"${self.api_key_env} holds letters that no key has; set it anew")
        return key or None
