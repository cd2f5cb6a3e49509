"""Time and memory of joint attention, forward and backward: by splits against L x L masks.

One sample with two references, an instruction and a target; a share of the reference tokens is hidden from the target
as the bridge does in its masked layers. Backends:

    split   scaled-dot-product attention split by split (what scone_pl trains with on any device)
    bool    one product with an L x L bool mask
    float   one product with an L x L float32 mask plus an L x L float32 bias (the release's way)

Each case runs in a process of its own. Time: one layer's forward and backward, the best of the repeats; the masks are
built before, once for all layers, and `plan` is how long that takes. Memory: peak resident memory, masks included,
over that with queries, keys and values allocated.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor
from workload import available_memory, in_own_process, memory, training_pack

from scone_pl.model.attention import AttentionPlan, DensePlan, SplitPlan, attend, attended_pairs, dense_mask
from scone_pl.model.sequence import PackedSequence

LONGEST_CASE = 20.0
"""Seconds after which a case is not repeated again."""


class FloatBiasPlan(AttentionPlan):
    """The release's way: additive float32 masks; the bridge adds an L x L bias of its own in every masked layer."""

    def __init__(self, pack: PackedSequence) -> None:
        self.pack = pack
        self.mask = torch.zeros(len(pack), len(pack)).masked_fill_(~dense_mask(pack), float("-inf"))
        self.bias: Tensor | None = None

    def hiding(self, blocked: Tensor) -> FloatBiasPlan:
        self.bias = torch.zeros_like(self.mask)
        self.bias[self.pack.target_index] = torch.zeros(len(blocked)).masked_fill_(blocked, float("-inf"))
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        mask = self.mask if self.bias is None else self.mask + self.bias
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return attend(q, k, v, mask)[0].transpose(0, 1)


BACKENDS: dict[str, type[AttentionPlan]] = {"split": SplitPlan, "bool": DensePlan, "float": FloatBiasPlan}
BYTES_A_PAIR = {"split": 0, "bool": 10, "float": 16}
"""Rough peak: masks, their temporaries, and the float copy that the kernel makes of a bool mask."""


def run_case(backend: str, options: argparse.Namespace, tokens: int, blocked_percent: int) -> dict[str, float]:
    """Measures one case in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    _step(SplitPlan(small := training_pack(300)), _inputs(small, options))  # starts threads, loads kernels
    pack = training_pack(tokens)
    references = pack.reference_tokens.nonzero().flatten()
    hidden = references[torch.randperm(len(references))[: round(len(references) * blocked_percent / 100)]]
    blocked = torch.zeros(len(pack), dtype=torch.bool).index_fill(0, hidden, True)
    inputs = _inputs(pack, options)
    before = memory("VmRSS")
    start = time.perf_counter()
    plan = BACKENDS[backend](pack)  # type: ignore[call-arg]
    if blocked_percent:
        plan = plan.hiding(blocked)
    planned = time.perf_counter()
    seconds = float("inf")
    for _ in range(options.repeats):
        seconds = min(seconds, _step(plan, inputs))
        if time.perf_counter() - planned > LONGEST_CASE:
            break
    return {
        "tokens": len(pack),
        "pairs": attended_pairs(pack, blocked) / len(pack) ** 2,
        "seconds": seconds,
        "plan_seconds": planned - start,
        "memory": max(0, memory("VmHWM") - before),
    }


def _inputs(pack: PackedSequence, options: argparse.Namespace) -> list[Tensor]:
    shape = (len(pack), options.heads, options.head_dim)
    return [torch.randn(shape, requires_grad=True) for _ in range(3)]


def _step(plan: AttentionPlan, inputs: list[Tensor]) -> float:
    for x in inputs:
        x.grad = None
    start = time.perf_counter()
    plan(*inputs, layer=0).square().sum().backward()
    return time.perf_counter() - start


def rows_of_table(options: argparse.Namespace) -> list[str]:
    """Runs all cases and prints the rows as they come."""
    rows = []
    for tokens in options.tokens:
        for percent in options.blocked:
            found = {backend: _spawn(backend, options, tokens, percent) for backend in options.backends}
            reference = found.get("float", {})
            for backend, case in found.items():
                rows.append(_row(tokens, percent, backend, case, reference))
                print(rows[-1], flush=True)
    return rows


def _spawn(backend: str, options: argparse.Namespace, tokens: int, percent: int) -> dict[str, float | str]:
    needed = BYTES_A_PAIR[backend] * tokens**2
    if needed > options.memory_limit * 1e9:
        return {"error": f"skipped, needs about {needed / 1e9:.1f} GB (--memory-limit {options.memory_limit:.1f})"}
    passed = ["repeats", "threads", "heads", "head_dim"]
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in passed]
    return in_own_process([__file__, "--case", backend, f"--tokens={tokens}", f"--blocked={percent}", *flags])


def _row(tokens: int, percent: int, backend: str, case: dict, reference: dict) -> str:
    head = f"| {case.get('tokens', tokens)} | {percent} % | {backend} "
    if "error" in case:
        return head + f"| {case['error']} | | | | | |"
    ratios = ["", ""]
    if "error" not in reference and reference:
        ratios = [f"{case['seconds'] / reference['seconds']:.2f}", f"{case['memory'] / reference['memory']:.2f}"]
    return head + (
        f"| {case['pairs']:.0%} | {case['seconds']:.3f} | {ratios[0]} | {case['memory'] / 1e6:.0f} | {ratios[1]} "
        f"| {case['plan_seconds'] * 1e3:.0f} |"
    )


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="lengths of the sample")
    parser.add_argument("--blocked", type=int, nargs="+", default=[0, 50, 90], help="%% of reference tokens hidden")
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help="what to run")
    parser.add_argument("--repeats", type=int, default=5, help="forward and backward passes, the best one counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--heads", type=int, default=8, help="query and key/value heads")
    parser.add_argument("--head-dim", type=int, default=32, help="size of a head")
    parser.add_argument(
        "--memory-limit",
        type=float,
        default=round(0.8 * available_memory() / 1e9, 1),
        help="GB; cases that would need more are skipped (default: 80 %% of what is free, %(default)s)",
    )
    parser.add_argument("--case", choices=list(BACKENDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options.case, options, options.tokens[0], options.blocked[0])))
        return
    print(
        f"{options.heads} heads of {options.head_dim}, float32, {options.threads} threads, torch {torch.__version__}\n"
    )
    print("| tokens | blocked | backend | pairs / L^2 | s | / float | peak MB | / float | plan ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows_of_table(options)


if __name__ == "__main__":
    main()
