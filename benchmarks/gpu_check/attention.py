"""Flex and split attention against the dense float64 reference, forward and backward.

The reference computes in float64 from the same (rounded) inputs, with the L x L mask that defines who attends to whom.
Errors are relative: the norm of the difference over the norm of the reference, for the output and for the gradient of
every input, the soft bridge's similarity included.

Each head dimension and dtype is compared in a process of its own, side by side: compiling takes most of the time.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.report import FAILURES, Report, one_line
from benchmarks.gpu_check.settings import Settings
from scone_pl.model.attention import ATTENTION_BACKENDS, AttentionPlan, DensePlan
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.sequence import PackedSequence, SequenceFormat, SpecialTokens

HEADS, KV_HEADS = 28, 4
"""Of the 7B decoder: 7 query heads share a key head."""
HEAD_DIMS = (32, 64, 72, 80, 128)
"""128: the decoder; 72: SigLIP; 80: neither a power of two nor a multiple of 32; 32 and 64: small models."""
NOT_COMPARED = frozenset(
    [("varlen", "float32", dim) for dim in HEAD_DIMS] + [("flex", "float32", dim) for dim in HEAD_DIMS if dim > 32]
)
"""Varlen computes in half precision alone; flex in float32 takes minutes to compile at larger head dimensions."""
TOLERANCES = {
    "float32": {"forward": 1e-5, "backward": 1e-4},
    "bfloat16": {"forward": 1e-2, "backward": 2e-2},
}
"""Of the relative errors. float32 (tf32 off): rounding is 6e-8, sums of hundreds of terms stay under 1e-6, and sums
over all queries, as in the gradient of keys, under 1e-5; ten times that. bfloat16: one rounding of a result is at most
2e-3 of its norm, rounded probabilities add as much; gradients pass three such products in a row."""
BACKENDS = ("split", "varlen", "flex")
BRIDGES = ("off", "hard", "soft")
FRACTIONS = (0.0, 0.5, 1.0)
"""Of the reference tokens that the bridge blocks."""
FORMAT = SequenceFormat(
    special=SpecialTokens(0, 1, 2, 3),
    latent_stride=16,
    latent_positions_per_side=64,
    vit_patch_size=14,
    vit_positions_per_side=70,
)


@dataclass(frozen=True)
class Case:
    """One comparison."""

    backend: str
    bridge: str
    fraction: float
    head_dim: int
    dtype: str


def run(settings: Settings, report: Report) -> None:
    """See the module."""
    report.record(tolerances=TOLERANCES, heads=[HEADS, KV_HEADS], tokens=len(odd_pack()))
    dims = HEAD_DIMS if settings.cuda else (72,)
    dtypes = list(TOLERANCES) if settings.cuda else ["float32"]
    groups = list(itertools.product(dims, dtypes))
    results: list[dict[str, object]] = []
    if settings.cuda:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # the groups are parallel already
        workers = min(len(groups), os.cpu_count() or 1)
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            futures = {pool.submit(compare_group, *group, str(settings.device)): group for group in groups}
            for future in as_completed(futures):
                try:
                    results += future.result()
                except (*FAILURES, BrokenProcessPool) as error:
                    report.require(False, f"head dimension, dtype {futures[future]}: {one_line(error)}")
                report.record(cases=results)
    else:
        for group in groups:
            results += compare_group(*group, str(settings.device))
        report.record(cases=results)
        report.skip("needs CUDA: flex forward only, uncompiled")
    for result in results:
        report.require(result["problem"] == "", f"{name_of(result)}: {result['problem']}")
    report.record(compared=len(results), worst=worst_errors(results))


def name_of(result: dict[str, object]) -> str:
    """A case in words."""
    blocked = "" if result["bridge"] == "off" else f" {result['fraction']:.0%}"
    size = f"{result['dtype']}, head dimension {result['head_dim']}"
    return f"{result['backend']}, {size}, bridge {result['bridge']}{blocked}"


def worst_errors(results: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    """The largest forward and backward error of each backend and dtype."""
    worst: dict[str, dict[str, float]] = {}
    for result in results:
        name = f"{result['backend']}, {result['dtype']}"
        for key, value in result["errors"].items():  # type: ignore[attr-defined]
            side = "forward" if key == "output" else "backward"
            of_backend = worst.setdefault(name, {})
            of_backend[side] = max(of_backend.get(side, 0.0), value)
    return worst


def compare_group(head_dim: int, dtype: str, device: str) -> list[dict[str, object]]:
    """All cases of one head dimension and dtype; a case that raises is a problem of its own."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    results = []
    for backend, bridge in itertools.product(BACKENDS, BRIDGES):
        if backend == "varlen" and not device.startswith("cuda"):
            continue
        if (backend, dtype, head_dim) in NOT_COMPARED and device.startswith("cuda"):
            continue
        for fraction in FRACTIONS if bridge != "off" else (0.0,):
            case = Case(backend, bridge, fraction, head_dim, dtype)
            errors: dict[str, float] = {}
            try:
                errors = compare(case, torch.device(device))
                problem = problem_of(case, errors)
            except FAILURES as error:
                problem = one_line(error)
            results.append({**asdict(case), "errors": errors, "problem": problem})
    return results


def problem_of(case: Case, errors: dict[str, float]) -> str:
    """Which errors are over their tolerance, NaN included; empty if none is."""
    allowed = TOLERANCES[case.dtype]
    wrong = {
        name: error
        for name, error in errors.items()
        if not error <= allowed["forward" if name == "output" else "backward"]
    }
    return ", ".join(f"error of {name} {error:.2e}" for name, error in wrong.items())


def compare(case: Case, device: torch.device) -> dict[str, float]:
    """Relative errors of the output and, where the backend has a backward, of the gradients."""
    pack = odd_pack().to(device)
    generator = torch.Generator().manual_seed(case.head_dim)
    dtype = getattr(torch, case.dtype)
    inputs = {
        name: torch.randn(len(pack), heads, case.head_dim, generator=generator).to(device, dtype)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    }
    logits = 3 * torch.randn(len(pack), generator=generator) - 1
    chosen = pack.reference_tokens & (torch.rand(len(pack), generator=generator) < case.fraction).to(device)
    upstream = torch.randn(len(pack), HEADS, case.head_dim, generator=generator).to(device, dtype)
    backward = case.backend != "flex" or device.type == "cuda"
    plan = ATTENTION_BACKENDS[case.backend](pack)  # type: ignore[call-arg]
    computed = attend(plan, case, inputs, logits.to(device), chosen, upstream, backward=backward)
    exact = {name: x.double() for name, x in inputs.items()}
    reference = attend(
        DensePlan(pack), case, exact, logits.to(device).double(), chosen, upstream.double(), backward=backward
    )
    return {name: relative_error(value, reference[name]) for name, value in computed.items()}


def attend(
    plan: AttentionPlan,
    case: Case,
    inputs: dict[str, Tensor],
    logits: Tensor,
    chosen: Tensor,
    upstream: Tensor,
    *,
    backward: bool,
) -> dict[str, Tensor]:
    """Output and gradients under one plan.

    Args:
        plan: of the pack, nothing hidden yet.
        case: which bridge to apply.
        inputs: q (L, H, E), k and v (L, K, E).
        logits: (L,), whose log sigmoid is the soft bridge's bias where `chosen`.
        chosen: (L,) bool: the blocked reference tokens.
        upstream: (L, H, E): gradient of the output.
        backward: False = output only.
    """
    leaves = {name: x.detach().clone().requires_grad_(backward) for name, x in inputs.items()}
    if case.bridge == "hard":
        plan = plan.hiding(chosen)
    elif case.bridge == "soft":
        leaves["similarity"] = logits.clone().requires_grad_(backward)
        plan = plan.biased(F.logsigmoid(leaves["similarity"]).masked_fill(~chosen, 0.0))
    with torch.set_grad_enabled(backward):
        output = plan(leaves["q"], leaves["k"], leaves["v"], 0)
    if not backward:
        return {"output": output}
    gradients = torch.autograd.grad(output, list(leaves.values()), upstream)
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference over that of the reference; the norm itself where the reference is 0."""
    norm = reference.norm()
    return ((value.double() - reference).norm() / torch.where(norm > 0, norm, 1.0)).item()


def odd_pack() -> PackedSequence:
    """Five samples of odd lengths: two alike side by side, one with a long text, text and target, text alone."""
    builder = SequenceBuilder(FORMAT)

    def image(rows: int, columns: int, stride: int) -> Tensor:
        return torch.zeros(1).expand(3, rows * stride, columns * stride)

    def sample(references: list[tuple[int, int, int, int]], words: int, target: tuple[int, int] | None) -> None:
        builder.begin_sample()
        for number, (rows, columns, vit_rows, vit_columns) in enumerate(references):
            builder.add_vae(image(rows, columns, 16), reference=number)
            builder.add_vit(image(vit_rows, vit_columns, 14), reference=number)
        builder.add_text([4 + i % 50 for i in range(words)])
        if target is not None:
            builder.add_targets(image(*target, 16), [0.3])

    for _ in range(2):
        sample([(5, 7, 3, 5), (7, 3, 5, 3)], 13, (5, 7))
    sample([(3, 11, 5, 5)], 291, (7, 9))
    sample([], 6, (3, 5))
    sample([], 18, None)
    return builder.build()
