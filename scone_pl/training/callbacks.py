"""What a run reports about its data, and a grid of images at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from scone_pl.data.stream import Batch
from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.model.sequence import PackedSequence
from scone_pl.ranges import check_whole
from scone_pl.sampling.context import Prompt
from scone_pl.sampling.prompts import prompts_of, target_image
from scone_pl.sampling.sampler import SampledLatents, decode_latents, initial_noise, sample, to_uint8
from scone_pl.sampling.visualize import Pixels, bridge_image, dim_blocked, image_grid, save_image
from scone_pl.training.curves import log_histogram, log_image
from scone_pl.training.module import SconeModule
from scone_pl.training.trainer_attributes import data_module, log_interval


class DataProgress(pl.Callback):
    """Informs the data module of what has been trained on, before any checkpoint is written; logs skipped samples."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        data = data_module(trainer)
        data.consumed(batch)
        if trainer.global_step % log_interval(trainer) == 0:
            pl_module.log("data/epoch", float(batch.position.epoch))
            pl_module.log("data/seen", float(data.seen))
            for reason, count in data.skipped.items():
                pl_module.log(f"data/skipped/{reason}", float(count))


class Previews(pl.Callback):
    """Samples a few validation prompts and shows references, target, sampled image and blocked tokens."""

    def __init__(self, num_samples: int = 4, every_n_validations: int = 1) -> None:
        """How much to show.

        Args:
            num_samples: Prompts of the first validation pack to sample; 0 = none.
            every_n_validations: Sample at each n-th validation.

        Raises:
            UserError: a number out of range.
        """
        check_whole("previews.num_samples", num_samples)
        check_whole("previews.every_n_validations", every_n_validations, minimum=1)
        self.num_samples = num_samples
        self.every_n_validations = every_n_validations
        self._validations = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: SconeModule,  # type: ignore[override] # the only module that recipes can name
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or trainer.sanity_checking or not self.num_samples:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        # Every rank samples: a sharded model cannot run on one alone.
        prompts = prompts_of(batch.sequence)[: self.num_samples]
        sampled = sample_previews(pl_module, prompts)
        self._show(trainer, "previews", preview_grid(pl_module, batch.sequence, prompts, sampled), "previews")
        rows = [
            (to_uint8(vae).numpy(), similarity.float().cpu().numpy(), blocked.cpu().numpy())
            for prompt, result in zip(prompts, sampled, strict=True)
            for (vae, _), similarity, blocked in zip(prompt.references, result.similarity, result.blocked, strict=False)
        ]
        if rows:  # sampled with the bridge
            self._show(trainer, "bridge/maps", bridge_image(rows), "previews/bridge")
            values = torch.cat([torch.from_numpy(similarity).flatten() for _, similarity, _ in rows])
            self._log_histogram(trainer, values)

    @rank_zero_only
    def _log_histogram(self, trainer: pl.Trainer, values: torch.Tensor) -> None:
        log_histogram(trainer.loggers, "bridge/similarity", values, trainer.global_step)

    @rank_zero_only
    def _show(self, trainer: pl.Trainer, name: str, image: Pixels, folder: str) -> None:
        log_image(trainer.loggers, name, image, trainer.global_step)
        try:
            save_image(image, f"{trainer.default_root_dir}/{folder}/step-{trainer.global_step:06d}.png")
        except UserError as error:
            warn(f"{error}; training continues without")


def sample_previews(module: SconeModule, prompts: Sequence[Prompt]) -> list[SampledLatents]:
    """Samples prompts with the current weights, always with the same noise."""
    generator = torch.Generator().manual_seed(0)
    noise = [initial_noise(p, module.model, module.sequence_format, generator) for p in prompts]
    training = module.model.training
    module.model.eval()
    sampled = sample(module.model, module.sequence_format, prompts, module.predictor.sampling, noise)
    module.model.train(training)
    return sampled


def preview_grid(
    module: SconeModule, pack: PackedSequence, prompts: Sequence[Prompt], sampled: Sequence[SampledLatents]
) -> Pixels:
    """A row per sample: references (blocked regions pale), target, sampled image."""
    rows = []
    width = max(len(p.references) for p in prompts)
    for i, (prompt, result) in enumerate(zip(prompts, sampled, strict=True)):
        images = reference_images(prompt, result)
        blank = [torch.full((8, 8, 3), 250, dtype=torch.uint8).numpy()] * (width - len(images))
        target = to_uint8(target_image(pack, i)).numpy()
        generated = to_uint8(decode_latents(module.model, result)).numpy()
        rows.append(([*images, *blank, target, generated], module.tokenizer.decode(list(prompt.text_ids or ()))))
    titles = [*(f"reference {i + 1}" for i in range(width)), "target", "generated"]
    return image_grid(rows, titles=titles)


def reference_images(prompt: Prompt, result: SampledLatents) -> list[Pixels]:
    """The references of a prompt, pale where the bridge blocked them."""
    images = [to_uint8(vae).numpy() for vae, _ in prompt.references]
    if not result.blocked:
        return images
    return [dim_blocked(p, b.cpu().numpy()) for p, b in zip(images, result.blocked, strict=True)]
