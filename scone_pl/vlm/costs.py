"""Token usage of the judge, and its cost if the model's price is known."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_yaml

FILE = Path(__file__).parent / "prices.yaml"
_DATED = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    """Price of input tokens from the service's cache; None = `input`."""

    @property
    def cached(self) -> float:
        """Price per million cached input tokens."""
        return self.input if self.cached_input is None else self.cached_input

    def of(self, usage: Mapping[str, Any]) -> float:
        """Cost of one answer in dollars."""
        cached: int = usage.get("cached_tokens", 0)
        uncached: int = usage.get("prompt_tokens", 0) - cached
        completion: int = usage.get("completion_tokens", 0)
        return (uncached * self.input + cached * self.cached + completion * self.output) / 1e6


def price_of(model: str, file: str | Path | None = None) -> Price | None:
    """The price of a model; None if the file does not list it.

    Raises:
        UserError: the file is not a YAML table of prices.
    """
    path = FILE if file is None else Path(file)
    try:
        prices = read_yaml(path, dict)
        entry = prices.get(model) or prices.get(_DATED.sub("", model))
        price = None if entry is None else Price(**{name: float(value) for name, value in entry.items()})
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: must hold lines such as `model: {{input: 2.0, output: 8.0}}` ({error})") from None
    if price and not all(math.isfinite(value) and value >= 0 for value in (price.input, price.output, price.cached)):
        raise UserError(f"{path}: prices of {model} must be dollars, 0 or more")
    return price


class Usage:
    """Accumulated token usage."""

    def __init__(self, price: Price | None) -> None:
        self.price = price
        self.prompt_tokens = self.completion_tokens = self.answers = 0
        self.dollars = 0.0

    def add(self, usage: Mapping[str, Any]) -> None:
        """Adds one answer."""
        self.answers += 1
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)
        self.dollars += self.price.of(usage) if self.price else 0.0

    def __str__(self) -> str:
        cost = f"${self.dollars:.2f}" if self.price else "cost unknown"
        return f"{_abbreviated(self.prompt_tokens)} + {_abbreviated(self.completion_tokens)} tokens, {cost}"

    def as_dict(self) -> dict[str, Any]:
        """JSON representation."""
        return {
            "answers": self.answers,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "dollars": round(self.dollars, 4) if self.price else None,
        }


def _abbreviated(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1_000_000 else f"{count / 1e3:.1f}K" if count >= 1000 else str(count)
