"""Fetches the shards of the packs to come while the present one is made."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from scone_pl.data.sources import Draw, Mixture
from scone_pl.data.storage import FetchError

Item = TypeVar("Item")


class Prefetcher:
    """Two background threads (one waits, one receives); without remote sources none."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._wanted: queue.Queue[tuple[int, int]] = queue.Queue()
        self._asked: dict[tuple[int, int], None] = {}
        if mixture.has_remote:
            for _ in range(2):
                # A daemon: neither the end of a run nor a killed worker waits for a slow server.
                threading.Thread(target=self._work, daemon=True).start()

    def want(self, draws: Iterable[Draw]) -> None:
        """Asks for the shards of a pack; returns at once."""
        for draw in draws:
            shard = (draw.source, self._mixture.shard_of(draw))
            if self._mixture.sets[draw.source].storage.remote and shard not in self._asked:
                self._asked[shard] = None
                self._wanted.put(shard)
                if len(self._asked) > 1024:  # old ones may have left the cache and may be asked for again
                    del self._asked[next(iter(self._asked))]

    def _work(self) -> None:
        while True:
            source, shard = self._wanted.get()
            with contextlib.suppress(FetchError):  # whoever reads a sample of it says so
                self._mixture.sets[source].fetch(shard)


def ahead(items: Iterator[Item], count: int) -> Iterator[tuple[Item, list[Item]]]:
    """Each item with those that have come into sight: the next `count` at first, then one more each time."""
    waiting: list[Item] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            break
    new = list(waiting)
    while waiting:
        yield waiting.pop(0), new
        new = [item for item in [next(items, None)] if item is not None]
        waiting += new
