"""Host-device synchronisations of one training step, each with the line that asked for it.

On CUDA torch reports each (`torch.cuda.set_sync_debug_mode`). On the CPU the operations that would wait for a GPU are
counted instead: those whose result, or whose result's size, the host must know. The number does not depend on sizes, so
few layers do; every masked and unmasked layer is among them.
"""

from __future__ import annotations

import dataclasses
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_check.report import FAILURES, Report, one_line
from benchmarks.gpu_check.settings import ROOT, Settings, wait
from benchmarks.gpu_check.stack import bridge_of, build_trained, config_of, full_pack, one_rank
from benchmarks.gpu_check.training import TrainingStep

LAYERS = 4
READ_BY_HOST = {
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten._unique2"),
    *("aten.unique_dim", "aten.unique_consecutive", "aten.repeat_interleave", "aten.bincount", "aten.is_nonzero"),
}
"""Operations that make the host wait for a CUDA device."""


def run(settings: Settings, report: Report) -> None:
    """Counts in the third step of each backend and bridge."""
    results: dict[str, Any] = {}
    with one_rank(settings):
        config = config_of(dataclasses.replace(settings, quick=True), LAYERS)
        model = build_trained(config, settings, "split")
        pack = full_pack(config, dataclasses.replace(settings, quick=True))
        for attention in ("varlen", "split", "flex") if settings.cuda else ("split",):
            model.attention = attention
            for kind in ("off", "hard", "soft"):
                bridge = bridge_of(kind, len(model.language_model.model.layers))
                step = partial(TrainingStep(model, bridge, settings), pack)
                label = f"{attention}, bridge {kind}"
                try:
                    step()
                    step()
                    wait(settings.device)
                    with counting(settings) as lines:
                        step()
                    results[label] = {"count": sum(lines.values()), "lines": dict(lines.most_common())}
                except FAILURES as error:
                    report.require(False, f"{label}: {one_line(error)}")
                del step
                report.record(synchronisations=results)
    # The norm of the gradient is read before each optimizer step, or a gradient that is not finite would pass.
    for label, result in results.items():
        report.require(result["count"] > 0, f"{label}: none was counted, not even the norm of the gradient")
    if not settings.cuda:
        report.skip("needs CUDA: operations that would synchronise")


@contextmanager
def counting(settings: Settings) -> Iterator[Counter[str]]:
    """Counts, by `file:line` of this repository, what happens inside."""
    lines: Counter[str] = Counter()
    if not settings.cuda:
        with _ReadByHost(lines):
            yield lines
        return

    def note(message: Any, *args: Any, **kwargs: Any) -> None:
        if "synchronizing" in str(message):
            lines[asking_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode("default")


class _ReadByHost(TorchDispatchMode):
    def __init__(self, lines: Counter[str]) -> None:
        super().__init__()
        self.lines = lines

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        indexed = name == "aten.index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READ_BY_HOST or indexed:
            self.lines[asking_line()] += 1
        return func(*args, **(kwargs or {}))


def asking_line() -> str:
    """The innermost line of this repository's code on the stack, this file left out; else of anything."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__]
    mine = [f for f in frames if Path(f.filename).is_relative_to(ROOT) and "site-packages" not in f.filename]
    frame = (mine or frames)[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(ROOT) if mine else path.name}:{frame.lineno}"
