"""Prefetches the remote shards of upcoming packs."""

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
    """Two background threads if there are remote sources, none otherwise."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._queue: queue.Queue[tuple[int, int]] = queue.Queue()
        self._requested: dict[tuple[int, int], None] = {}
        if mixture.has_remote:
            for _ in range(2):
                # Daemon threads, so that the end of a run does not wait for a slow server.
                threading.Thread(target=self._work, daemon=True).start()

    def request(self, draws: Iterable[Draw]) -> None:
        """Queues the shards of a pack; does not block."""
        for draw in draws:
            shard = (draw.source, self._mixture.shard_of(draw))
            if self._mixture.sets[draw.source].storage.remote and shard not in self._requested:
                self._requested[shard] = None
                self._queue.put(shard)
                if len(self._requested) > 1024:  # older ones may have been evicted and may be requested again
                    del self._requested[next(iter(self._requested))]

    def _work(self) -> None:
        while True:
            source, shard = self._queue.get()
            with contextlib.suppress(FetchError):  # reported when a sample of the shard is read
                self._mixture.sets[source].open(shard).close()


def with_lookahead(items: Iterator[Item], count: int) -> Iterator[tuple[Item, list[Item]]]:
    """Each item with those that newly entered the lookahead window of `count` items."""
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
