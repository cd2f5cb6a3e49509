"""Memory and time of an open judge on a server such as vLLM: counted from its sizes, not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scone_pl.errors import UserError
from scone_pl.gpus import Gpu

GIB = 2**30
TOKENS_PER_IMAGE = 1024
"""Of Qwen3-VL at 1024 x 1024: a token per 32 x 32 pixels."""
TEXT_TOKENS, ANSWER_TOKENS = 700, 250
OVERHEAD = 0.15
"""Fraction of a GPU's memory for activations and the server itself."""
MAX_GPUS = 8
DECODE_EFFICIENCY = 0.05
"""Fraction of the peak FLOPs that generating answers reaches in batches."""


@dataclass(frozen=True)
class OpenJudge:
    """Sizes of a vision-language model, in bf16."""

    model: str
    parameters: float
    """All of them, 10^9."""
    active: float
    """Used for a token, 10^9."""
    layers: int
    kv_heads: int
    head_dim: int = 128

    @property
    def weights_gib(self) -> float:
        """Memory of the weights."""
        return self.parameters * 1e9 * 2 / GIB

    def cache_gib(self, tokens: int) -> float:
        """Memory of keys and values of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2 * tokens / GIB


JUDGES = {
    "qwen3-vl-4b": OpenJudge("Qwen/Qwen3-VL-4B-Instruct", 4.4, 4.4, 36, 8),
    "qwen3-vl-8b": OpenJudge("Qwen/Qwen3-VL-8B-Instruct", 8.8, 8.8, 36, 8),
    "qwen3-vl-30b-a3b": OpenJudge("Qwen/Qwen3-VL-30B-A3B-Instruct", 31.1, 3.6, 48, 4),
    "qwen3-vl-32b": OpenJudge("Qwen/Qwen3-VL-32B-Instruct", 33.4, 33.4, 64, 8),
}
"""Sizes as in the models' configurations, rounded."""


@dataclass(frozen=True)
class JudgeEstimate:
    """An open judge on one kind of GPU."""

    gpu: Gpu
    gpus: int | None
    """Least number (1, 2, 4 or 8) that holds weights and cache; None = more than `MAX_GPUS`."""
    weights_gib: float
    cache_gib: float
    hours: float | None
    dollars: float | None


def judge_of(name: str) -> OpenJudge:
    """A judge by its short name or hub id.

    Raises:
        UserError: its sizes are not known.
    """
    for short, judge in JUDGES.items():
        if name.lower() in (short, judge.model.lower(), judge.model.rpartition("/")[2].lower()):
            return judge
    raise UserError(f"--judge {name}: its sizes are not known; one of {', '.join(JUDGES)}")


def estimate_judge(
    judge: OpenJudge, gpus: Sequence[Gpu], questions: int, images: int, concurrency: int, mfu: float
) -> list[JudgeEstimate]:
    """Memory and time for each kind of GPU.

    Args:
        judge: the model.
        gpus: kinds of GPUs.
        questions: number of questions.
        images: images in each.
        concurrency: questions at once.
        mfu: fraction of the peak FLOPs that reading the questions reaches.
    """
    prompt = TEXT_TOKENS + images * TOKENS_PER_IMAGE
    cache = judge.cache_gib(concurrency * (prompt + ANSWER_TOKENS))
    results = []
    for gpu in gpus:
        usable = gpu.memory_gib * (1 - OVERHEAD)
        least = math.ceil((judge.weights_gib + cache) / usable)
        number = next((n for n in (1, 2, 4, MAX_GPUS) if n >= least), None)
        hours = dollars = None
        if number is not None:
            work = prompt / mfu + ANSWER_TOKENS / DECODE_EFFICIENCY
            seconds = questions * 2 * judge.active * 1e9 * work / (number * gpu.tflops * 1e12)
            hours = seconds / 3600
            dollars = hours * number * gpu.price
        results.append(JudgeEstimate(gpu, number, judge.weights_gib, cache, hours, dollars))
    return results
