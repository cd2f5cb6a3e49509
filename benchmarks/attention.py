"""Time and memory of joint attention, forward and backward: by splits against L x L masks.

One sample with two references, an instruction and a target; a fraction of the reference tokens is hidden from the
target as a hard bridge does in its masked layers, or gets a soft bridge's bias, whose gradient is computed too.
Backends:

    split   scaled-dot-product attention split by split (what scone_pl trains with on any device)
    bool    one product with an L x L bool mask
    float   one product with an L x L float32 mask plus an L x L float32 bias, as in the release

Each case runs in a process of its own. Time: one layer's forward and backward in CPU time, the best of the repeats;
the masks are built before, once for all layers, and `plan` is how long that takes. Memory: peak resident memory, masks
included, over that with queries, keys and values allocated.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import copy
from itertools import product

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
        return self.biased(torch.zeros(len(blocked)).masked_fill_(blocked, float("-inf")))

    def biased(self, bias: Tensor) -> FloatBiasPlan:
        plan = copy(self)
        plan.bias = torch.where(self.pack.target_tokens[:, None], bias, 0.0)
        return plan

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
    bias = torch.zeros(len(pack)).masked_fill_(blocked, -2.0).requires_grad_()
    if blocked_percent and options.bridge[0] == "hard":
        plan = plan.hiding(blocked)
    planned = time.perf_counter()
    seconds = float("inf")
    for _ in range(options.repeats):
        soft = plan.biased(bias) if options.bridge[0] == "soft" else plan
        seconds = min(seconds, _step(soft, inputs))
        if time.perf_counter() - planned > LONGEST_CASE:
            break
    return {
        "tokens": len(pack),
        "pairs": attended_pairs(pack, blocked if options.bridge[0] == "hard" else None) / len(pack) ** 2,
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
    start = time.process_time()
    plan(*inputs, layer=0).square().sum().backward()
    return time.process_time() - start


def rows_of_table(options: argparse.Namespace) -> list[str]:
    """Runs all cases and prints the rows as they come."""
    rows = []
    for tokens, mode, percent in product(options.tokens, options.bridge, options.blocked):
        cases = {backend: _spawn(backend, options, tokens, mode, percent) for backend in options.backends}
        reference = cases.get("float", {})
        for backend, case in cases.items():
            rows.append(_row(tokens, f"{mode}, {percent} %", backend, case, reference))
            print(rows[-1], flush=True)
    return rows


def _spawn(backend: str, options: argparse.Namespace, tokens: int, mode: str, percent: int) -> dict[str, float | str]:
    needed = BYTES_A_PAIR[backend] * tokens**2
    if needed > options.memory_limit * 1e9:
        return {"error": f"skipped, needs about {needed / 1e9:.1f} GB (--memory-limit {options.memory_limit:.1f})"}
    passed = ["repeats", "threads", "heads", "head_dim"]
    flags = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in passed]
    case = ["--case", backend, f"--tokens={tokens}", f"--bridge={mode}", f"--blocked={percent}"]
    return in_own_process([__file__, *case, *flags])


def _row(tokens: int, bridge: str, backend: str, case: dict, reference: dict) -> str:
    head = f"| {case.get('tokens', tokens)} | {bridge} | {backend} "
    if "error" in case:
        return head + f"| {case['error']} | | | | | |"
    ratios = ["", ""]
    if "error" not in reference and reference:
        ratios = [f"{case['seconds'] / reference['seconds']:.2f}", f"{case['memory'] / reference['memory']:.2f}"]
    return head + (
        f"| {ratios[0]} | {ratios[1]} | {case['pairs']:.0%} | {case['seconds']:.3f} | {case['memory'] / 1e6:.0f} "
        f"| {case['plan_seconds'] * 1e3:.0f} |"
    )


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="lengths of the sample")
    parser.add_argument("--blocked", type=int, nargs="+", default=[0, 50, 90], help="%% of reference tokens hidden")
    parser.add_argument("--bridge", nargs="+", choices=["hard", "soft"], default=["hard", "soft"], help="its mode")
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
    print(
        "| tokens | bridge, blocked | backend | time / float | memory / float "
        "| pairs / L^2 | CPU s | peak MB | plan ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows_of_table(options)


if __name__ == "__main__":
    main()
