"""Run by torchrun-like environment variables: one rank of a sharded tiny model, for test_gradients.py."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from model_helpers import EVERYTHING, make_pack, tiny_model

from scone_pl.errors import UserError
from scone_pl.training.gradients import GradientGuard, gradient_norms
from scone_pl.training.losses import flow_matching
from scone_pl.training.parts import set_trainable
from scone_pl.training.sharding import ShardingConfig, shard

TRAINED = ("understanding", "generation", "connector", "latent_projections")


def main() -> None:
    """Prints what this rank finds, as JSON; rank 0 of a mesh or, without --sharded, a process alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--clip", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = tiny_model().train()
    set_trainable(model, TRAINED)
    if options.sharded:
        dist.init_process_group("gloo")
        mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        shard(model, mesh, ShardingConfig(compute_dtype="float32"))
    pack = make_pack(*EVERYTHING)
    clean = model.encode_images(pack)
    loss = flow_matching(model, pack, clean, torch.ones_like(clean)).squared_error.mean()
    loss.backward()
    parameters = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    cpu = torch.device("cpu")
    guard = GradientGuard()
    before = guard.apply(parameters, options.clip, 1, cpu)
    result = {"groups": before.groups, "total": before.total, "clipped": gradient_norms(parameters, cpu).total}
    rank = dist.get_rank() if options.sharded else 0
    guard.remember([f"sample{rank}"])
    if rank == dist.get_world_size() - 1 if options.sharded else True:
        gradient = parameters[-1][1].grad
        getattr(gradient, "_local_tensor", gradient).fill_(float("nan"))
    try:
        guard.apply(parameters, 1.0, 7, cpu)
    except UserError as error:
        result["complaint"] = str(error)
    print(json.dumps(result), flush=True)
    if options.sharded:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
