"""What a run would ask and cost, before anything is spent."""

from __future__ import annotations

from contextlib import suppress

from scone_pl.construct.pipeline import POOLS, Pipeline
from scone_pl.construct.steps.base import Calls, ModelStep
from scone_pl.construct.store import Store
from scone_pl.construct.tasks import unknown_facts
from scone_pl.errors import UserError
from scone_pl.markdown import markdown_table
from scone_pl.vlm.costs import price_of

TOKENS_PER_PIXEL = 1 / 1024
"""Of Qwen3-VL: a token per 32 x 32 pixels."""


def plan_text(pipeline: Pipeline) -> str:
    """A table of the steps, with totals; facts that are known already cost nothing."""
    rows: list[list[str]] = []
    flows: dict[str, float] = {}
    known = pipeline.state(POOLS)
    flows[POOLS] = float(known.kept if known else len(pipeline.numbers))
    dollars = seconds = 0.0
    unknown_prices: set[str] = set()
    for step in pipeline.steps:
        state = pipeline.state(step.name)
        incoming = step.own + sum(_flow(pipeline, flows, name) for name in step.input)
        flows[step.name] = state.kept if state else step.passing(incoming)
        left = 0.0 if state and state.complete else incoming
        if left and isinstance(step, ModelStep) and all(pipeline.state(one) for one in pipeline.input_names(step)):
            with suppress(UserError), Store(pipeline.store_file) as store:  # a run may be writing
                left = float(unknown_facts(pipeline, step, store))
        calls = step.calls() if isinstance(step, ModelStep) else []
        cost, time, asked, tokens = _cost(pipeline, calls, left, unknown_prices)
        dollars, seconds = dollars + cost, seconds + time
        rows.append(
            [
                step.name,
                f"{incoming:.0f}",
                f"{flows[step.name]:.0f}",
                f"{asked:.0f}",
                _thousands(tokens),
                f"{cost:.2f}" if calls else "",
                f"{time / 3600:.2f}" if calls else "",
            ]
        )
    lines = [f"{sum(map(len, pipeline.pools))} entries in {len(pipeline.pools)} pools, {len(pipeline.numbers)} chosen"]
    lines += [
        f"  {pool.config.name}: {len(pool)} entries, {pool.config.license or 'no license given'}"
        for pool in pipeline.pools
    ]
    head = ["step", "samples in", "out", "calls", "tokens", "dollars", "hours"]
    lines += ["", markdown_table(head, rows), ""] if rows else []
    lines.append(f"about ${dollars:.2f} and {seconds / 3600:.2f} hours of waiting for models")
    if unknown_prices:
        lines.append(f"no price is known of {', '.join(sorted(unknown_prices))}: counted as free (models.NAME.prices)")
    return "\n".join(lines)


def _flow(pipeline: Pipeline, flows: dict[str, float], name: str) -> float:
    if name in flows:
        return flows[name]
    sizes = {pool.config.name: len(pool) for pool in pipeline.pools}
    return flows[POOLS] * sizes[name] / max(1, sum(sizes.values()))


def _cost(
    pipeline: Pipeline, calls: list[Calls], samples: float, unknown: set[str]
) -> tuple[float, float, float, float]:
    """Dollars, seconds, calls and tokens of a step."""
    dollars = seconds = number = tokens = 0.0
    for one in calls:
        config = pipeline.model_configs[one.model]
        asked = samples * one.number
        number += asked
        seconds += asked * config.seconds / config.concurrency
        if one.edits:
            dollars += asked * config.dollars_per_image
            continue
        inputs = one.tokens + one.images * config.image_pixels * TOKENS_PER_PIXEL
        tokens += asked * (inputs + one.answer)
        price = price_of(config.model, config.prices)
        if price is None:
            unknown.add(config.model)
        else:
            dollars += asked * price.of({"prompt_tokens": inputs, "completion_tokens": one.answer})
    return dollars, seconds, number, tokens


def _thousands(count: float) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}K" if count >= 1e3 else f"{count:.0f}"
