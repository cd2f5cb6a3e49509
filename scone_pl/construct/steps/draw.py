"""A random subset, balanced over groups."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scone_pl.construct.items import Item, Rejected
from scone_pl.construct.steps.base import Outcome, Rows, SelectStep
from scone_pl.data.fields import look_up
from scone_pl.errors import UserError
from scone_pl.ranges import check_whole


@dataclass(frozen=True, kw_only=True)
class Draw(SelectStep):
    """Draws samples at random; small groups are taken whole, and the others share the rest equally."""

    samples: int
    """Number of samples; all, if there are fewer."""
    by: tuple[str, ...] = ()
    """Groups: `pool`, `references` (their number), `kind`, or fields of the metadata such as category or case."""
    seed: int = 0
    """Of the draw; by default the pipeline's."""

    def __post_init__(self) -> None:
        check_whole("samples", self.samples, minimum=1)
        check_whole("seed", self.seed)
        if any(not name.strip() for name in self.by):
            raise UserError("by: a name is empty")

    def passing(self, incoming: float) -> float:
        return min(incoming, self.samples)

    def group(self, item: Item) -> str:
        """What it is balanced by."""
        return repr([self._value(item, name) for name in self.by])

    def _value(self, item: Item, name: str) -> Any:
        if name == "references":
            return len(item.references)
        return item.kind if name == "kind" else look_up(item.metadata, name)

    def select(self, rows: Rows) -> Iterator[tuple[Item, Outcome]]:
        groups: dict[str, array[int]] = defaultdict(lambda: array("L"))
        for number, (item, _) in enumerate(rows()):
            groups[self.group(item)].append(number)
        generator = random.Random(f"draw {self.seed}")
        chosen: set[int] = set()
        left = self.samples
        for position, (_, members) in enumerate(sorted(groups.items(), key=lambda pair: (len(pair[1]), pair[0]))):
            quota = min(len(members), left // (len(groups) - position))
            chosen.update(generator.sample(members, quota))
            left -= quota
        for number, (item, _) in enumerate(rows()):
            yield item, [item] if number in chosen else Rejected("not drawn")
