"""How often FlexAttention is compiled over 20 packs of different lengths and layouts, bridge off, hard and soft.

One graph serves all packs: lengths are dynamic, and who attends to whom lies in tables, not in the code. The limit is
therefore the number of kernels (`KERNELS`), plus one for each kind of bridge, whose first graph the compiler may
specialise to the first pack's numbers and replace once. That is 8, where torch stops compiling one function and
materialises all scores without a word. After `WARM_UP` packs nothing may be compiled any more.
"""

from __future__ import annotations

import random
from unittest import mock

import torch
import torch._dynamo
import torch.nn.functional as F
from torch._dynamo.utils import counters, get_compilation_metrics

from benchmarks.gpu_check.attention import FORMAT
from benchmarks.gpu_check.report import Report, problem_or
from benchmarks.gpu_check.settings import Settings
from scone_pl.model.attention import AttentionPlan, flex
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import PackedSequence

PACKS, QUICK_PACKS = 20, 6
WARM_UP = 3
"""Packs after which all graphs must be there."""
KERNELS = {"off": 1, "hard": 1, "soft": 3}
"""By bridge: a mask each; the soft one's scores, and two products for the gradient of its bias (`FlexPlan`)."""
HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128


def run(settings: Settings, report: Report) -> None:
    """Counts compilations after each pack."""
    torch._dynamo.reset()
    counters.clear()
    counts, lengths = [], []
    packs = QUICK_PACKS if settings.quick else PACKS
    unsupported: dict[str, str] = {}
    # Without CUDA the plan does not compile: there only the tracing is repeated, forward, which has the same guards.
    traced = torch.compile(flex.flex_attention, dynamic=True, backend="eager")
    patches = {} if settings.cuda else {"flex_attention": traced}
    with mock.patch.multiple(flex, **patches) if patches else mock.patch.dict({}):
        for number in range(packs):
            pack = random_pack(number, large=settings.cuda).to(settings.device)
            lengths.append(len(pack))
            for kind in KERNELS:
                found = problem_or(attend, pack, kind, settings)
                if "problem" in found:
                    unsupported.setdefault(kind, found["problem"])
            counts.append(counters["stats"]["unique_graphs"])
            report.record(compilations=counts, lengths=lengths)
    reasons = [m.recompile_reason for m in get_compilation_metrics() if m.recompile_reason]
    limit = sum(KERNELS.values()) + len(KERNELS)
    report.record(kernels=KERNELS, limit=limit, recompile_reasons=[str(reason)[:300] for reason in reasons])
    for kind, message in unsupported.items():
        report.require(False, f"bridge {kind}: {message}")
    report.require(counts[-1] > 0, "nothing was compiled")
    report.require(counts[-1] <= limit, f"{counts[-1]} compilations; the limit is {limit}")
    late = counts[-1] - counts[WARM_UP - 1]
    report.require(late == 0, f"{late} compilations after pack {WARM_UP} of {packs}")
    if not settings.cuda:
        report.skip("needs CUDA: traced, forward only")


def attend(pack: PackedSequence, kind: str, settings: Settings) -> dict[str, str]:
    """Two layers of attention, with the backward where there is one."""
    generator = torch.Generator().manual_seed(len(pack))
    shapes = (HEADS, KV_HEADS, KV_HEADS) if settings.cuda else (4, 2, 2)
    dim = HEAD_DIM if settings.cuda else 16
    q, k, v = (
        torch.randn(len(pack), heads, dim, generator=generator)
        .to(settings.device, settings.compute_dtype)
        .requires_grad_(settings.cuda)
        for heads in shapes
    )
    similarity = torch.randn(len(pack), generator=generator).to(settings.device).requires_grad_(settings.cuda)
    plan: AttentionPlan = flex.FlexPlan(pack)
    if kind == "hard":
        plan = plan.hiding(pack.reference_tokens & (similarity.detach() < 0))
    elif kind == "soft":
        plan = plan.biased(F.logsigmoid(similarity).masked_fill(~pack.reference_tokens, 0.0))
    for layer in range(2):
        output = plan(q, k, v, layer)
        if settings.cuda:
            output.square().mean().backward()
    return {}


def random_pack(seed: int, *, large: bool) -> PackedSequence:
    """One to four samples of random layouts; no two seeds give equal lengths."""
    draw = random.Random(seed)
    sides = (12, 40) if large else (3, 9)
    builder = SequenceBuilder(FORMAT)

    def image(stride: int) -> torch.Tensor:
        rows, columns = (draw.randint(*sides) * stride for _ in range(2))
        return torch.zeros(1).expand(3, rows, columns)

    for sample in range(draw.randint(1, 4)):
        builder.begin_sample()
        for number in range(draw.randint(1, 3)):
            builder.add_vae(image(16), reference=number)
            builder.add_vit(image(14), reference=number)
        builder.add_text([4] * (draw.randint(3, 80) + (300 if sample == 0 else 0)))
        builder.add_targets(image(16), [0.3])
    return builder.build()
