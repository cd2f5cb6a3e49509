"""One rank of a sharded model, for test_sharding.py: started with torchrun's environment variables, prints JSON.

`hybrid FOLDER`: gradients, and a snapshot written and read, on a mesh of two copies.
`load FOLDER`: memory while a checkpoint folder is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from model_helpers import EVERYTHING, make_pack, tiny_model

from scone_pl.checkpoints.model import load_weights, read_config
from scone_pl.checkpoints.tensor_files import whole_tensor
from scone_pl.model.scone import Scone
from scone_pl.training.gradients import gradient_norms
from scone_pl.training.losses import flow_matching
from scone_pl.training.parts import set_trainable
from scone_pl.training.sharding import ShardingConfig, shard
from scone_pl.training.snapshots import SnapshotWriter, read_tensors, snapshot_name

TRAINED = ("understanding", "generation", "connector", "latent_projections")


def mesh_of_all() -> torch.distributed.DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


def hybrid(folder: Path, replicas: int) -> dict[str, object]:
    """Loss and gradient norm; then the snapshot of the sharded weights, read again into others."""
    model = tiny_model().train()
    set_trainable(model, TRAINED)
    if dist.is_initialized():
        shard(model, mesh_of_all(), ShardingConfig(compute_dtype="float32", replicas=replicas))
    pack = make_pack(*EVERYTHING)
    clean = model.encode_images(pack)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    loss = flow_matching(model, pack, clean, noise).squared_error.mean()
    loss.backward()
    norms = gradient_norms(model.named_parameters(), torch.device("cpu"))
    result: dict[str, object] = {"loss": loss.item(), "norm": norms.total}
    if dist.is_initialized():
        state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        before = {name: whole_tensor(tensor).clone() for name, tensor in state.items()}
        result["held"] = sum(t.to_local().numel() for t in state.values()) / sum(t.numel() for t in state.values())
        writer = SnapshotWriter()
        writer.write({"model": state}, {}, folder / snapshot_name(1))
        writer.wait()
        with torch.no_grad():
            for tensor in state.values():
                tensor.zero_()
        read_tensors(folder / snapshot_name(1), {"model": state}, "model")
        result["restored"] = all(whole_tensor(state[name]).equal(before[name]) for name in before)
    return result


class Peak:
    """Largest private memory of this process so far, in bytes; pages of mapped files do not count."""

    def __init__(self) -> None:
        self.bytes = self.now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, self.now())
            time.sleep(0.001)

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def load(folder: Path) -> dict[str, object]:
    """Bytes that loading a sharded model took at its highest, and what the rank keeps."""
    with torch.device("meta"):
        model = Scone(read_config(folder))
    set_trainable(model, TRAINED)
    shard(model, mesh_of_all(), ShardingConfig(compute_dtype="float32"))
    before, peak = Peak.now(), Peak()
    model.to_empty(device="cpu")
    load_weights(model, folder)
    time.sleep(0.01)
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() * 4 for p in model.parameters())
    total = sum(p.numel() * 4 for p in model.parameters())
    first = whole_tensor(model.language_model.model.layers[0].mlp.gate_proj.weight)
    return {"peak": peak.bytes - before, "held": held, "total": total, "sum": first.double().sum().item()}


def main() -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    kind, folder = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(load(folder) if kind == "load" else hybrid(folder, int(sys.argv[3]))))


if __name__ == "__main__":
    main()
