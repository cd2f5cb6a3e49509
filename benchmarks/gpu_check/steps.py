"""The steps of the check, in order. To add one: a module with `run(settings, report)`, and a row here."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL_SECONDS = 480
"""The whole check may take so long on one H100."""


@dataclass(frozen=True)
class Step:
    """One step."""

    module: str
    """Of this package, with a function `run`."""
    limit: int
    """Seconds after which it is killed on a GPU; with `--device cpu` ten times as many, as cores may be shared."""
    title: str


STEPS = {
    "rates": Step("rates", 15, "versions, GPU, rates of matrix products and copies"),
    "attention": Step("attention", 85, "split, varlen and flex attention against the dense float64 reference"),
    "parity": Step("parity", 50, "published numbers computed again, flex and split"),
    "recompilations": Step("recompilations", 60, "compilations of FlexAttention over 20 different packs"),
    "training": Step("training", 120, "a training step of a 7B-shaped stack: time, memory, worth of each switch"),
    "resuming": Step("resuming", 95, "FSDP2 on one rank, killed and resumed; stall of a snapshot"),
    "sampling": Step("sampling", 35, "1024 x 1024 sampling of a 7B-shaped stack, extrapolated to 28 layers"),
    "synchronisations": Step("synchronisations", 20, "host-device synchronisations of one training step"),
}
"""By name. The limits add up to `TOTAL_SECONDS` at most."""
