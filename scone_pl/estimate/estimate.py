"""All of an estimate as data: stages x plans x GPUs, with advice where something does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from scone_pl.dtypes import DTYPES
from scone_pl.estimate.activations import StepActivations, step_activations
from scone_pl.estimate.memory import RankMemory, encode_bytes, host_bytes, rank_memory
from scone_pl.estimate.settings import Recipe, Stage
from scone_pl.estimate.speed import PackFlops, StageTime, pack_flops, stage_time
from scone_pl.estimate.state import Network, Plan
from scone_pl.estimate.workload import typical_pack
from scone_pl.gpus import Gpu
from scone_pl.model.config import NetworkConfig
from scone_pl.model.lora import LoRAConfig
from scone_pl.training.parts import Part

RANKS_A_NODE = 8
MOST_RANKS = 1024
"""Where advice stops looking."""


@dataclass(frozen=True)
class Case:
    """A stage under a plan."""

    plan: Plan
    memory: RankMemory
    host: dict[str, int]
    times: dict[str, StageTime]
    """By GPU."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage."""

    stage: Stage
    trained: dict[Part, int]
    """Parameters that train."""
    tokens: int
    flops: PackFlops
    activations: dict[bool, StepActivations]
    """By whether activations are recomputed (checkpointing)."""
    cases: tuple[Case, ...]
    advice: dict[str, str]
    """By GPU, of those on which a case does not fit."""


@dataclass(frozen=True)
class Estimate:
    """A recipe."""

    recipe: Recipe
    parts: dict[Part, int]
    """Parameters, without adapters."""
    gpus: dict[str, Gpu]
    mfu: float
    stages: tuple[StageEstimate, ...]


def plans_for(stage: Stage, ranks: int) -> list[Plan]:
    """Ways to distribute a stage over `ranks` ranks: the recipe's and, over several nodes, also one copy per node."""
    plan = dataclasses.replace(stage.plan, ranks=ranks, replicas=1)
    if plan.kind != "sharded":
        return [dataclasses.replace(plan, kind="replicated" if ranks > 1 else "whole")]
    copies = {1, ranks // RANKS_A_NODE if ranks % RANKS_A_NODE == 0 else 1}
    if ranks % stage.plan.replicas == 0:
        copies.add(stage.plan.replicas)
    return [dataclasses.replace(plan, replicas=c) for c in sorted(copies - {0})]


def estimate(
    recipe: Recipe, ranks: Sequence[int], gpus: dict[str, Gpu], mfu: float, references: int = 2, labels: int = 0
) -> Estimate:
    """Estimates every stage of a recipe.

    Args:
        recipe: its stages.
        ranks: numbers of GPUs.
        gpus: kinds, by name.
        mfu: see `stage_time`.
        references: images of a sample.
        labels: see `typical_pack`.
    """
    stages = tuple(_stage(recipe, stage, ranks, gpus, mfu, references, labels) for stage in recipe.stages)
    return Estimate(recipe, Network.of(recipe.config, ()).count(), gpus, mfu, stages)


def fits(memory: RankMemory, gpu: Gpu) -> bool:
    """Whether a rank's memory is there."""
    return memory.needed <= gpu.memory_gib * 2**30


@dataclass(frozen=True)
class _Memory:
    """Memory of a stage under any plan."""

    config: NetworkConfig
    network: Network
    stage: Stage
    encode: int
    activations: dict[bool, StepActivations]

    def of(
        self,
        plan: Plan,
        *,
        checkpointing: bool | None = None,
        fraction: float = 1.0,
        network: Network | None = None,
    ) -> RankMemory:
        """With a fraction of the token budget, with which activations grow, or with other parameters training."""
        used = self.stage.checkpointing if checkpointing is None else checkpointing
        full = self.activations[used]
        if used and checkpointing is None:
            full = full.interpolate(self.activations[False], self.stage.layers_kept / self.config.decoder.num_layers)
        scaled = StepActivations(round(full.kept * fraction), round(full.peak * fraction))
        stage = self.stage
        return rank_memory(
            network or self.network,
            plan,
            scaled,
            self.encode,
            ema=stage.ema,
            autoencoder_dtype=stage.autoencoder_dtype,
        )


def _stage(
    recipe: Recipe,
    stage: Stage,
    ranks: Sequence[int],
    gpus: dict[str, Gpu],
    mfu: float,
    references: int,
    labels: int,
) -> StageEstimate:
    pack = typical_pack(recipe.config, stage.packing, references, labels)
    flops = pack_flops(recipe.config, stage, pack)
    activations = {
        checkpointing: step_activations(
            recipe.config,
            pack,
            stage.trained,
            attention=stage.attention,
            checkpointing=checkpointing,
            recompute_attention=stage.recompute_attention,
            dtype=DTYPES[stage.plan.compute],
            lora=stage.lora,
            quantization=stage.quantization,
        )
        for checkpointing in (True, False)
    }
    network = Network.of(recipe.config, stage.trained, stage.lora, stage.quantization)
    # With latents computed before, validation and previews still encode.
    encode = encode_bytes(recipe.config, stage.packing.vae_resize.max_size, stage.autoencoder_dtype)
    memory = _Memory(recipe.config, network, stage, encode, activations)
    cases = []
    for plan in (plan for number in ranks for plan in plans_for(stage, number)):
        needed = memory.of(plan)
        times = {name: stage_time(flops, stage, gpu, plan.ranks, mfu) for name, gpu in gpus.items()}
        host = host_bytes(network, needed.state, ranks_a_node=min(plan.ranks, RANKS_A_NODE))
        cases.append(Case(plan, needed, host, times))
    advice = {}
    for name, gpu in gpus.items():
        short = [case.plan for case in cases if not fits(case.memory, gpu)]
        if short:  # of the largest number of GPUs that is too small
            advice[name] = _advice(memory, gpu, max(short, key=lambda plan: (plan.ranks, -plan.replicas)))
    return StageEstimate(stage, network.count(trained=True), len(pack), flops, activations, tuple(cases), advice)


def _advice(memory: _Memory, gpu: Gpu, plan: Plan) -> str:
    """What would make a stage fit that does not."""
    stage, ways = memory.stage, []
    if not stage.checkpointing and fits(memory.of(plan, checkpointing=True), gpu):
        ways.append("model.init_args.activation_checkpointing true")
    fractions = [sixteenths / 16 for sixteenths in range(15, 3, -1)]
    fraction = next((f for f in fractions if fits(memory.of(plan, checkpointing=True, fraction=f), gpu)), None)
    if fraction:
        tokens = int(fraction * stage.packing.token_budget)
        and_checkpointing = "" if stage.checkpointing else " with activation_checkpointing"
        ways.append(f"data.packing.token_budget {tokens}{and_checkpointing}")
    if plan.kind == "sharded":
        number = plan.ranks
        while number < MOST_RANKS and not fits(memory.of(dataclasses.replace(plan, ranks=number, replicas=1)), gpu):
            number *= 2
        if number < MOST_RANKS:
            more = f"{number} GPUs" if number > plan.ranks else "full shard (model.init_args.sharding.replicas 1)"
            ways.append(more)
    else:
        ways.append("trainer.strategy fully_sharded with model.init_args.sharding.compute_dtype bfloat16")
    small = dataclasses.replace(plan, kind="sharded", compute="bfloat16")
    adapters = Network.of(memory.config, stage.trained, LoRAConfig())
    if stage.lora is None and fits(memory.of(small, checkpointing=True, network=adapters), gpu):
        ways.append("LoRA (model.init_args.lora {rank: 16})")
    elif stage.quantization is None:
        quantized = Network.of(memory.config, stage.trained, stage.lora or LoRAConfig(), "nf4")
        if fits(memory.of(small, checkpointing=True, network=quantized), gpu):
            ways.append("QLoRA (experiments/qlora.yaml)")
    where = f"{plan.ranks} x {gpu.name} ({plan.name})"
    if not ways:
        return f"{where}: nothing here makes it fit; a GPU with more memory, or more of them"
    return f"{where} is too small; it fits with any of: {'; '.join(ways)}"
