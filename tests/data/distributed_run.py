"""Training runs on several ranks for the tests: `python distributed_run.py '[{"folder": ..., "out": ..., ...}, ...]'`.

Lightning starts the other ranks by running this script again. The runs follow one another in the same processes; each
rank writes what it saw, and how a run ended, to the run's `<out>/rank<r>.json`.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from scone_pl.data.datamodule import PackedDataModule
from scone_pl.data.packing import PackingConfig
from scone_pl.data.sources import Source
from scone_pl.data.storage import StorageConfig
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.errors import UserError
from scone_pl.model.sequence import SequenceFormat
from scone_pl.training.callbacks import DataProgress


class Tiny(pl.LightningModule):
    """One weight, whose gradient all ranks average."""

    def __init__(self, options):
        super().__init__()
        self.options = options
        self.tokenizer = byte_tokenizer()
        sizes = {"latent_stride": 8, "latent_positions_per_side": 8, "vit_patch_size": 8, "vit_positions_per_side": 8}
        self.sequence_format = SequenceFormat(special=self.tokenizer.special, **sizes)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([batch.position.number, batch.position.epoch, *batch.sequence.keys])
        with (Path(self.options["out"]) / f"log{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([self.global_step, *self.seen[-1]]) + "\n")
        if self.global_step == self.options.get("die_at") and self.global_rank == self.options.get("die_rank", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.global_step == self.options.get("kill_worker_at") and self.global_rank == 1:
            multiprocessing.active_children()[0].kill()
        time.sleep(self.options.get("step_seconds", 0))
        value = batch.sequence.timestep_logits[batch.sequence.timestep_logits.isfinite()].sum()
        return (self.weight * value).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(options):
    limits = ResizeLimits(max_size=48, min_size=16)
    out, rank = Path(options["out"]), int(os.environ.get("LOCAL_RANK", 0))
    out.mkdir(exist_ok=True)
    result = {"rank": rank}
    module = Tiny(options)
    try:
        data = PackedDataModule(
            train=[Source(options["folder"])],
            packing=PackingConfig(token_budget=150, vae_resize=limits, vit_resize=limits, lookahead=8),
            num_workers=options.get("workers", 0),
            seed=5,
            max_skipped_fraction=options.get("share", 0.01),
            storage=StorageConfig(cache_dir=str(out / "cache"), backoff_seconds=0.05, attempts=4, timeout_seconds=5),
        )
        save = pl.callbacks.ModelCheckpoint(
            dirpath=out / "checkpoints", every_n_train_steps=options.get("save_every", 1000), save_last=True,
            save_on_exception=True, enable_version_counter=False,
        )  # fmt: skip
        trainer = pl.Trainer(
            max_steps=options["steps"],
            accelerator="cpu",
            devices=options["ranks"],
            strategy="ddp" if options["ranks"] > 1 else "auto",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
            callbacks=[DataProgress(), save],
            log_every_n_steps=4,
        )
        last = out / "checkpoints/last.ckpt"
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=False)
        logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
        result |= {"weight": module.weight.item(), "logged": logged}
    except UserError as error:
        result |= {"error": str(error)}
    result |= {"seen": getattr(data, "seen", 0), "skipped": dict(getattr(data, "skipped", {})), "steps": module.seen}
    (out / f"rank{rank}.json").write_text(json.dumps(result))


def main():
    torch.set_num_threads(1)
    for options in json.loads(sys.argv[1]):
        run(options)


if __name__ == "__main__":
    main()
