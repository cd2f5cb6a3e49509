"""Monitoring of a run: speed, time per phase, fraction of the GPU's peak (MFU), memory.

Everything is counted per optimizer step, accumulated packs together, and logged once per `trainer.log_every_n_steps`.
Times are CUDA events that are read when they are logged, so measuring them does not make each step wait for the GPU.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from scone_pl.data.stream import Batch
from scone_pl.errors import UserError
from scone_pl.gpus import peak_of
from scone_pl.model.flops import StepFlops, count_tokens, spared_pairs, step_flops
from scone_pl.model.network import NetworkOutput
from scone_pl.model.sequence import PackedSequence
from scone_pl.ranges import check_number
from scone_pl.training.module import SconeModule
from scone_pl.training.parts import EXPERTS
from scone_pl.training.trainer_attributes import log_interval

PHASES = ("data", "forward", "backward", "optimizer", "checkpoint")
"""What a step's time is split into: waiting for data, forward with the autoencoder, backward, norm and AdamW, and
writing a checkpoint as far as training waits for it."""

Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """A point in time: on CUDA an event in the stream, without host-device synchronisation."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Mark, stop: Mark) -> float:
    """Of two marks, both reached."""
    if isinstance(start, float) or isinstance(stop, float):
        assert isinstance(start, float)
        assert isinstance(stop, float)
        return stop - start
    return float(start.elapsed_time(stop)) / 1e3


def resident_memory() -> int:
    """Resident bytes of this process; its maximum where the system does not report the present value."""
    file = Path("/proc/self/statm")
    if file.exists():
        return int(file.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Interval:
    """Counts between two times of logging, on this rank."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    tokens: int = 0
    samples: int = 0
    flops: int = 0
    saved_flops: list[Tensor] = field(default_factory=list)
    """Saved by the bridge: scalars on the device."""
    spans: dict[str, list[tuple[Mark, Mark]]] = field(default_factory=lambda: {phase: [] for phase in PHASES})

    def seconds(self) -> dict[str, float]:
        """A step's mean seconds by phase; the marks must have been reached."""
        totals = {phase: sum(seconds_between(*span) for span in spans) for phase, spans in self.spans.items()}
        return {phase: total / max(1, self.steps) for phase, total in totals.items()}


class Monitoring(pl.Callback):
    """Logs speed, time by phase, MFU and memory, over all ranks."""

    def __init__(
        self, times: bool = True, mfu: bool = True, memory: bool = True, peak_tflops: float | None = None
    ) -> None:
        """What to log beside tokens and samples a second.

        Args:
            times: Seconds of a step by phase: data, forward, backward, optimizer, checkpoint.
            mfu: Model FLOPs of the actual packs (attended pairs, without recomputation) over the device's peak.
            memory: Peak of the GPU's memory since the last time, and resident memory of the process.
            peak_tflops: Peak of a device in 10^12 FLOP/s that mfu refers to; null = known GPUs' list value (bf16), and
                no mfu on other devices.
        """
        if peak_tflops is not None:
            check_number("monitoring.peak_tflops", peak_tflops, above=0, maximum=1e9)
            if not mfu:
                raise UserError("monitoring.peak_tflops is what monitoring.mfu refers to, which is false")
        self.times = times
        self.mfu = mfu
        self.memory = memory
        self.peak_tflops = peak_tflops
        self._interval = Interval()
        self._peak: float | None = None
        self._last: Mark | None = None
        self._step = 0
        self._after = "data"
        self._paused: float | None = None
        self._hook: RemovableHandle | None = None

    # ------------------------------------------------------------------ set-up
    def on_train_start(self, trainer: pl.Trainer, pl_module: SconeModule) -> None:  # type: ignore[override]  # this package's module alone
        device = pl_module.device
        self._interval, self._last, self._step = Interval(), None, trainer.global_step
        self._peak = None if self.peak_tflops is None else self.peak_tflops * 1e12
        if self.mfu and self._peak is None and device.type == "cuda":
            name = torch.cuda.get_device_name(device)
            self._peak = peak_of(name)
            if self._peak is None:
                rank_zero_info(f"no mfu: the peak of {name} is not known; set monitoring.peak_tflops")
        if self.mfu and self._peak is not None:
            self._hook = pl_module.model.register_forward_hook(self._flop_counter(pl_module))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _flop_counter(self, module: SconeModule) -> Callable[..., None]:
        """A forward hook of the network that adds up the FLOPs of its training passes."""
        settings, config = module.settings, module.network.config
        bridge, layers = settings.bridge, config.decoder.num_layers
        trained = set(settings.trainable) - set(EXPERTS if settings.lora else ())  # adapters cost next to nothing

        def count(model: torch.nn.Module, args: tuple[Any, ...], output: NetworkOutput) -> None:
            if not (model.training and torch.is_grad_enabled()):
                return
            pack: PackedSequence = args[0]
            plain = step_flops(config, count_tokens(pack, layers), trained)
            self._interval.flops += plain.total
            if bridge is not None and output.bridge is not None and output.bridge.remaining is not None:
                # Dropping has waited for the device in this very pass, so counting may wait too.
                counts = count_tokens(pack, layers, bridge, output.bridge.blocked)
                less = plain.total - step_flops(config, counts, trained).total
                self._interval.saved_flops.append(torch.tensor(less, device=pack.device))
            elif bridge is not None and output.bridge is not None:
                pair = StepFlops()
                pair.attention("attention", 1, config.decoder.hidden_size, grad=True)
                spared = spared_pairs(pack, output.bridge.blocked, layers, bridge)
                self._interval.saved_flops.append(spared * pair.total)

        return count

    # ------------------------------------------------------------------ marks
    def _reach(self, phase: str, device: torch.device) -> None:
        """Ends `phase`, which began at the last mark."""
        if not self.times:
            return
        now = mark(device)
        if self._last is not None:
            self._interval.spans[phase].append((self._last, now))
        self._last = now

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._reach(self._after, pl_module.device)
        self._after = "data"

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._reach("forward", pl_module.device)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reach("backward", pl_module.device)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._after = "checkpoint"

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no part of a step."""
        if self._paused is not None:
            self._interval.started += time.perf_counter() - self._paused
        self._last = self._paused = None

    # ------------------------------------------------------------------ logging
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._reach("optimizer", pl_module.device)
        interval = self._interval
        interval.tokens += len(batch.sequence)
        interval.samples += batch.sequence.num_samples
        if trainer.global_step == self._step:
            return  # more packs of this step are to come
        self._step = trainer.global_step
        interval.steps += 1
        if self._step % log_interval(trainer) == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._log(trainer, pl_module, interval)
            self._interval = Interval()

    def _log(self, trainer: pl.Trainer, module: pl.LightningModule, interval: Interval) -> None:
        seconds = time.perf_counter() - interval.started
        flops = interval.flops - sum(int(spared) for spared in interval.saved_flops)
        counts = torch.tensor([interval.tokens, interval.samples, flops], dtype=torch.float64, device=module.device)
        tokens, samples, flops = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        module.log("speed/tokens_per_second", tokens / seconds, prog_bar=True)
        module.log("speed/samples_per_second", samples / seconds)
        module.log("speed/step_seconds", seconds / interval.steps)
        if self.times:
            spent = interval.seconds()
            module.log_dict({f"speed/{phase}_seconds": value for phase, value in spent.items()})
            module.log("speed/data_wait_fraction", spent["data"] * interval.steps / seconds)
        if self._peak is not None and self.mfu:
            module.log("speed/mfu", flops / seconds / (self._peak * trainer.world_size))
        if self.memory:
            self._log_memory(trainer, module)

    def _log_memory(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Logs the maximum over ranks."""
        values = {"memory/host_resident_gb": resident_memory() / 1e9}
        if module.device.type == "cuda":
            values["memory/gpu_allocated_gb"] = torch.cuda.max_memory_allocated(module.device) / 1e9
            values["memory/gpu_reserved_gb"] = torch.cuda.max_memory_reserved(module.device) / 1e9
            torch.cuda.reset_peak_memory_stats(module.device)
        maxima = trainer.strategy.reduce(torch.tensor(list(values.values()), device=module.device), reduce_op="max")
        module.log_dict(dict(zip(values, maxima.tolist(), strict=True)))
