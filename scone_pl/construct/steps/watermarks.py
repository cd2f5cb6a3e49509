"""Watermarks, captions, frames and collages, by asking a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from scone_pl.construct.answers import read_numbers
from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.models import Model
from scone_pl.construct.steps.base import Calls, Facts, ModelStep, Outcome


@dataclass(frozen=True, kw_only=True)
class Watermarks(ModelStep):
    """Rejects samples with an image on which something is printed that is no part of it."""

    vlm: str = "vlm"
    """The vision-language model."""

    expected: ClassVar[float] = 0.95
    models: ClassVar[tuple[str, ...]] = ("vlm",)

    async def ask(self, item: Item, models: Mapping[str, Model]) -> Facts:
        count = len(item.images)
        found = await models[self.vlm].ask(
            "watermarks", read_numbers("marked", count), item.images, about=item.key, count=str(count)
        )
        return {"marked": list(found)}

    def decide(self, item: Item, facts: Mapping[str, Any]) -> Outcome:
        if not facts["marked"]:
            return [item]
        number = facts["marked"][0]
        name = f"reference {number}" if number <= len(item.references) else "the target"
        return Rejected("watermark", f"{name} has a watermark, caption or frame")

    def calls(self) -> list[Calls]:
        return [Calls(self.vlm, 1, 3, 100, 10)]
