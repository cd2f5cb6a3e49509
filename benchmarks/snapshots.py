"""Saving while training: how long a run stands still for a snapshot, against `torch.save` of everything in one file.

    python benchmarks/snapshots.py [--megabytes 1000]

One process on the CPU, so staging is a copy in memory; on a GPU it is a copy to the host.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch

from scone_pl.training.snapshots import SnapshotWriter, snapshot_name


class Extra:
    """The most private memory that this process held beyond what it held at the start, in bytes."""

    def __init__(self) -> None:
        self._before, self.most, self._over = self._now(), 0, False
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._over = True
        self._thread.join()
        return self.most

    def _watch(self) -> None:
        while not self._over:
            self.most = max(self.most, self._now() - self._before)
            time.sleep(0.002)

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Time that a run stands still for a snapshot.")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of weights and optimizer state together")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    each = 16_000_000  # a 2000 x 2000 weight
    state = {"model": {f"w{i}": torch.randn(2000, 2000) for i in range(options.megabytes * 1_000_000 // each)}}
    size = sum(t.nbytes for t in state["model"].values()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        extra, begun = Extra(), time.perf_counter()
        torch.save(state, Path(folder) / "baseline.pt")
        with (Path(folder) / "baseline.pt").open("rb+") as file:
            os.fsync(file.fileno())
        baseline, baseline_extra = time.perf_counter() - begun, extra.stop()

        writer = SnapshotWriter()
        extra, begun = Extra(), time.perf_counter()
        writer.write(state, {}, Path(folder) / snapshot_name(1))
        blocked = time.perf_counter() - begun
        writer.wait()
        total, snapshot_extra = time.perf_counter() - begun, extra.stop()
    print(f"{size:,.0f} MB of state          stands still   until safe on disk   extra memory")
    print(f"torch.save, one file     {baseline:10.2f} s   {baseline:15.2f} s   {baseline_extra / 1e6:9,.0f} MB")
    print(f"snapshot in background   {blocked:10.2f} s   {total:15.2f} s   {snapshot_extra / 1e6:9,.0f} MB")


if __name__ == "__main__":
    main()
