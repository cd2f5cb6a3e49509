"""An estimate as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from scone_pl.estimate.estimate import Case, Estimate, StageEstimate, fits
from scone_pl.gpus import SOURCE
from scone_pl.training.parts import Part


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}" if count >= 5e7 else f"{count / 1e9:.3f}"


def _number(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def tables(estimate: Estimate) -> Iterator[Table | str]:
    """Everything that is printed, in order. GB are 10^9 bytes."""
    yield f"model: {estimate.recipe.source}"
    yield _parts(estimate)
    for stage in estimate.stages:
        yield _flops_line(stage)
        yield _memory(stage)
        yield _host_line(stage)
        yield _times(estimate, stage)
        yield from (f"does not fit: {text}" for text in stage.advice.values())
    yield (
        f"Times at an MFU of {estimate.mfu:g} (TensorBoard's speed/mfu), for as many tokens as the recipe's steps see "
        "on its own number of GPUs. What a rank 'needs' includes 2 GiB for CUDA and NCCL and 5% that the allocator "
        "loses."
    )
    yield SOURCE


def _parts(estimate: Estimate) -> Table:
    table = Table(title="parameters", title_justify="left")
    table.add_column("part")
    table.add_column("number", justify="right")
    for stage in estimate.stages:
        table.add_column(stage.stage.name, justify="center")
    for part, count in sorted(estimate.parts.items(), key=lambda item: -item[1]):
        table.add_row(part, _number(count), *(_trains(s, part, count) for s in estimate.stages))
    total = sum(estimate.parts.values())
    table.add_section()
    trained = [sum(s.trained.values()) for s in estimate.stages]
    table.add_row("all", _number(total), *(f"{_number(n)}, {n / total:.1%}" for n in trained))
    return table


def _trains(estimate: StageEstimate, part: Part, count: int) -> str:
    trained = estimate.trained.get(part, 0)
    return "-" if not trained else "trains" if trained == count else f"adapters, {_number(trained)}"


def _flops_line(estimate: StageEstimate) -> str:
    flops, stage = estimate.flops, estimate.stage
    again = flops.model.recomputed / flops.model.total
    encode = f"{flops.encode / 1e12:.1f} TFLOP in {stage.autoencoder_dtype}"
    return (
        f"{stage.name}: {estimate.tokens:,} tokens a rank and pack, {stage.accumulate} a step, {stage.steps} steps; "
        f"{flops.model.total / 1e12:,.1f} TFLOP a pack (attention over {flops.dense_share:.0%} of L^2, nothing "
        f"blocked), recomputed with checkpointing: {again:.0%} more; autoencoder apart: "
        f"{'none, latents are read' if stage.latents else encode}"
    )


def _memory(stage: StageEstimate) -> Table:
    used, other = ("on", "off") if stage.stage.checkpointing else ("off", "on")
    title = f"{stage.stage.name}: GB a rank; activations with checkpointing {used}, beside them {other}"
    table = Table(title=title, title_justify="left")
    table.add_column("GPUs")
    table.add_column("plan", no_wrap=True)
    for name in (
        "weights",
        "VAE, tables",
        "gradients",
        "AdamW, EMA",
        "gathered",
        "activations",
        f"({other})",
        "encode",
        "needs",
    ):
        table.add_column(name, justify="right")
    for case in stage.cases:
        memory, state = case.memory, case.memory.state
        sizes = (
            state.weights,
            state.autoencoder + state.buffers,
            state.gradients,
            state.optimizer + state.ema,
            memory.gathered,
            memory.activations.peak,
            stage.activations[not stage.stage.checkpointing].peak,
            memory.encode,
        )
        table.add_row(str(case.plan.ranks), case.plan.name, *map(_gb, sizes), f"[bold]{_gb(memory.needed)}")
    return table


def _times(estimate: Estimate, stage: StageEstimate) -> Table:
    table = Table(title=f"{stage.stage.name}: does it fit; s a step, h, USD", title_justify="left")
    table.add_column("GPUs")
    table.add_column("plan", no_wrap=True)
    for gpu in estimate.gpus.values():
        table.add_column(f"{gpu.name}\n{gpu.memory_gib:g} GiB, {gpu.tflops:g} TFLOP/s, {gpu.price:g} USD/h")
    for case in stage.cases:
        table.add_row(str(case.plan.ranks), case.plan.name, *(_cell(estimate, case, name) for name in estimate.gpus))
    return table


def _cell(estimate: Estimate, case: Case, name: str) -> str:
    time = case.times[name]
    if not fits(case.memory, estimate.gpus[name]):
        return "[red]no"
    return f"fits: {time.step_seconds:.3g} s, {time.hours:.3g} h, {time.cost:,.0f} USD"


def _host_line(stage: StageEstimate) -> str:
    most = max(stage.cases, key=lambda case: case.host["loading, a node"])
    texts = (f"{name} {_gb(count)} GB" for name, count in most.host.items())
    return f"host memory, at most ({most.plan.ranks} GPUs, {most.plan.name}): {'; '.join(texts)}"


def as_json(estimate: Estimate) -> dict[str, Any]:
    """Everything in numbers: bytes, FLOPs, seconds, USD."""
    return {
        "model": estimate.recipe.source,
        "parameters": dict(estimate.parts),
        "mfu": estimate.mfu,
        "gpus": {name: vars(gpu) for name, gpu in estimate.gpus.items()},
        "source": SOURCE,
        "stages": [_stage_json(estimate, stage) for stage in estimate.stages],
    }


def _stage_json(estimate: Estimate, stage: StageEstimate) -> dict[str, Any]:
    flops = stage.flops
    return {
        "name": stage.stage.name,
        "trains": list(stage.stage.trained),
        "trained_parameters": sum(stage.trained.values()),
        "lora": None if stage.stage.lora is None else vars(stage.stage.lora),
        "quantization": stage.stage.quantization,
        "steps": stage.stage.steps,
        "tokens": stage.tokens,
        "packs_a_step": stage.stage.accumulate,
        "activation_checkpointing": stage.stage.checkpointing,
        "flops": {
            "forward": flops.model.forward,
            "backward": flops.model.backward,
            "total": flops.model.total,
            "recomputed": flops.model.recomputed,
            "encode": flops.encode,
        },
        "activations": {
            "checkpointing" if used else "no_checkpointing": vars(sizes) for used, sizes in stage.activations.items()
        },
        "cases": [_case_json(estimate, case) for case in stage.cases],
        "advice": stage.advice,
    }


def _case_json(estimate: Estimate, case: Case) -> dict[str, Any]:
    memory = case.memory
    return {
        "plan": vars(case.plan) | {"name": case.plan.name},
        "bytes": vars(memory.state)
        | {"gathered": memory.gathered, "activations": memory.activations.peak, "encode": memory.encode}
        | {"outside": memory.outside, "update": memory.update, "peak": memory.peak, "needed": memory.needed},
        "host_bytes": case.host,
        "gpus": {name: vars(time) | {"fits": fits(memory, estimate.gpus[name])} for name, time in case.times.items()},
    }
