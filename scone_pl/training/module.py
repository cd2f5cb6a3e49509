"""The LightningModule that every stage is: a checkpoint folder, a set of trainable parts, a mask, an optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from scone_pl.checkpoints.model import load_weights, read_config
from scone_pl.checkpoints.tensor_files import copy_part
from scone_pl.data.seeding import seed_of
from scone_pl.data.stream import Batch
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.bridge import Bridge
from scone_pl.model.config import BridgeConfig
from scone_pl.model.lora import LoRAConfig, add_lora, initial_weights
from scone_pl.model.scone import Scone
from scone_pl.sampling.prompts import image_size, prompts_of
from scone_pl.sampling.sampler import check_finite, decode_latents, initial_noise, sample, to_uint8
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.sampling.visualize import save_image
from scone_pl.training import losses
from scone_pl.training.ema import EMA, EMAConfig
from scone_pl.training.gradients import GradientGuard
from scone_pl.training.heap import trim_heap_before
from scone_pl.training.losses import AlignmentConfig
from scone_pl.training.optimizer import OptimizerConfig
from scone_pl.training.outcome import forget_stops
from scone_pl.training.parts import Part, count_trainable, set_trainable
from scone_pl.training.predictions import PredictionFolder, picture_seed
from scone_pl.training.results import DESCRIPTION
from scone_pl.training.runs import weights_identity
from scone_pl.training.sharding import (
    FullySharded,
    ShardingConfig,
    check_sharding,
    freeze_dtype,
    is_sharded,
    needs_wrapping,
    shard,
)
from scone_pl.training.start import check_start


class SconeModule(pl.LightningModule):
    """What all stages share. A stage differs by data, not by code: see `stages.py`."""

    model: Scone

    def __init__(
        self,
        init_from: str,
        trainable: Sequence[Part],
        bridge: BridgeConfig | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (immutable)
        timestep_shift: float = 1.0,
        text_loss_weight: float = 1.0,
        alignment: AlignmentConfig = AlignmentConfig(),  # noqa: B008 (immutable)
        attention: Literal["split", "flex"] = "split",
        activation_checkpointing: bool = True,
        layers_kept: int = 0,
        nonfinite_gradient: Literal["stop", "skip"] = "stop",
        sharding: ShardingConfig = ShardingConfig(),  # noqa: B008 (immutable)
        lora: LoRAConfig | None = None,
        ema: EMAConfig = EMAConfig(),  # noqa: B008 (immutable)
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 (immutable)
        mask_sampling: bool = False,
        sampling_round: int = 0,
    ) -> None:
        """Checks the checkpoint folder; weights are read when the trainer asks for the model.

        Args:
            init_from: Checkpoint folder in the published layout to start from.
            trainable: Parts that train; all others are frozen.
            bridge: The understanding bridge; null = no mask.
            optimizer: AdamW settings.
            timestep_shift: Shift of the training noise levels (docs/specification.md 4: 1).
            text_loss_weight: Weight of the cross-entropy on labelled text, the samples' answers.
            alignment: Optional supervision of the bridge's similarity.
            attention: Attention backend: split (any device) or flex (CUDA).
            activation_checkpointing: Recompute each decoder layer in the backward pass to save memory.
            layers_kept: So many decoder layers keep their activations all the same, where memory is left: less time.
            nonfinite_gradient: Where a step's gradient is not finite: stop, naming step and samples, or skip that step.
            sharding: FSDP2 settings, used by trainer.strategy fully_sharded.
            lora: Train low-rank adapters of the trainable experts instead of their weights, for few GPUs; null = off.
                The result's weights have them merged in.
            ema: Average of the weights that train (needs trainer.strategy fully_sharded).
            sampling: How previews and predictions are sampled. The noise of a prediction depends on its seed, the round
                and the sample's key alone; with a target, the target's size counts.
            mask_sampling: Apply `bridge` while sampling too (the release samples without).
            sampling_round: Number of the round, where a benchmark asks for several; give each its own output_dir.
        """
        super().__init__()
        self.init_from = str(init_from)
        self.trainable = tuple(trainable)
        self.bridge = bridge
        self.optimizer_config = optimizer
        self.timestep_shift = timestep_shift
        self.text_loss_weight = text_loss_weight
        self.alignment = alignment
        self.attention = attention
        self.activation_checkpointing, self.layers_kept = activation_checkpointing, layers_kept
        self.gradients = GradientGuard(nonfinite_gradient)
        self._step_sums: dict[str, Tensor] = {}
        self.sharding = sharding
        self.lora, self.ema_config = lora, ema
        self.ema: EMA | None = None
        self.sampling = dataclasses.replace(sampling, bridge=bridge if mask_sampling else sampling.bridge)
        self.sampling_round = sampling_round
        if alignment.weight and bridge is None:
            raise UserError(
                "model.alignment.weight needs model.bridge (with apply_mask: false where nothing is hidden)"
            )
        if mask_sampling and bridge is None:
            raise UserError(
                "model.mask_sampling applies model.bridge, which is null; set the bridge, or mask_sampling false"
            )
        if layers_kept and not activation_checkpointing:
            raise UserError("model.layers_kept leaves layers out of model.activation_checkpointing, which is false")
        folder = check_start(self.init_from)
        self._start_identity = weights_identity(folder)
        self.config = read_config(folder)
        last_layer = self.config.decoder.num_layers - 1
        if bridge is not None and bridge.last_masked_layer > last_layer:
            raise UserError(
                f"model.bridge.last_masked_layer is {bridge.last_masked_layer}, but the last decoder layer of "
                f"{folder} is {last_layer}"
            )
        self.tokenizer = Tokenizer.from_folder(folder)
        self.tokenizer.check_embedding(self.config.decoder.vocab_size)
        if not 0 <= layers_kept <= last_layer + 1:
            raise UserError(f"model.layers_kept is {layers_kept}, but {folder} has {last_layer + 1} decoder layers")
        self.sequence_format = self.config.sequence_format(self.tokenizer.special)
        self.image_size = image_size(self.sequence_format, sampling.height, sampling.width)
        self.sampling.check_bridge(self.config.decoder.num_layers)
        if sampling.seed is None:
            raise UserError("model.sampling.seed is null; previews and predictions must be repeatable, give a number")

    # ------------------------------------------------------------------ building
    def configure_model(self) -> None:
        """Builds on the meta device, freezes, shards, and only then reads the weights."""
        if hasattr(self, "model"):
            return
        check_sharding(self.sharding, self.trainer)
        model = self.meta_model()
        if self.attention == "flex" and self.trainer.strategy.root_device.type == "cpu":
            raise UserError("model.attention: flex has no backward on the CPU; use split")
        mesh = getattr(self, "_device_mesh", None)
        if mesh is not None and needs_wrapping(mesh, self.sharding):
            freeze_dtype(model, self.sharding)
            shard(model, mesh, self.sharding)
        model.to_empty(device=self.trainer.strategy.root_device)
        if self.trainer.strategy.root_device.type == "cpu":
            trim_heap_before(model.language_model.model.layers)
        read = load_weights(model, self.init_from)
        for _, parameter, value in initial_weights(model, seed_of("lora")):
            copy_part(value, parameter)
        self.model = model
        total = sum(p.numel() for p in model.parameters())
        trained = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in count_trainable(model).items())
        rank_zero_info(f"{type(self).__name__}: {total / 1e6:.2f} M parameters, training {trained}; {read}")

    def meta_model(self) -> Scone:
        """The network of this stage without memory for its weights, frozen as the stage says."""
        with torch.device("meta"):
            model = Scone(self.config).to(torch.get_default_dtype())
        model.attention = self.attention
        model.language_model.model.activation_checkpointing = self.activation_checkpointing
        model.language_model.model.layers_kept = self.layers_kept
        if self.lora is not None:
            add_lora(model.language_model.model.layers, self.lora, self.trainable)
        set_trainable(model, self.trainable, lora=self.lora is not None)
        return model

    def on_fit_start(self) -> None:
        if self.ema_config.decay and not isinstance(self.trainer.strategy, FullySharded):
            raise UserError("model.ema.decay needs trainer.strategy fully_sharded, which saves the average")
        if self.ema_config.decay:
            self.ema = EMA(self.model.named_parameters(), self.ema_config.decay)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.optimizer_config
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
        max_steps = self.trainer.max_steps
        if config.decay_steps and max_steps < 0:
            raise UserError("model.optimizer.decay_steps counts from the end; set trainer.max_steps")
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.rate_factor(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As usual, then the average follows."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update()

    # ------------------------------------------------------------------ one pack
    def _losses(self, batch: Batch, *, sample_posterior: bool) -> dict[str, Tensor]:
        """Sums and counts of this rank's pack, and monitoring values."""
        pack = batch.sequence
        # The noise depends on the batch's own seed alone: neither ranks nor resuming change it.
        with torch.no_grad():
            device_generator = torch.Generator(self.device).manual_seed(seed_of("posterior", batch.seed))
            clean = self.model.encode_images(pack, device_generator, sample=sample_posterior).float()
        noise_generator = torch.Generator().manual_seed(seed_of("noise", batch.seed))
        noise = torch.randn(clean.shape, generator=noise_generator).to(clean.device)
        aligned = self.alignment.weight > 0
        result = losses.flow_matching(
            self.model,
            pack,
            clean,
            noise,
            bridge=self.bridge,
            timestep_shift=self.timestep_shift,
            similarity_grad=aligned,
        )
        found = {
            "squared_error": result.squared_error.mean(-1).sum(),
            "cross_entropy": losses.text_cross_entropy(result.output, pack),
        }
        state = result.output.bridge
        if state is not None and self.bridge is not None:
            references = pack.reference_tokens
            # Counts, not an index by `references`: that would make the host wait for the device.
            found["blocked_share"] = ((state.blocked & references).sum() / references.sum()).nan_to_num()
            if aligned:
                threshold = Bridge(self.bridge, pack).threshold(state.similarity.detach())
                found["alignment"] = losses.alignment(state, pack, threshold, self.alignment.temperature)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        found = self._losses(batch, sample_posterior=True)
        # Lightning averages gradients over ranks and over the packs of a step. So sums are divided by the mean count
        # of a pack: every token of all ranks and packs weighs the same (docs/specification.md 4).
        packs = self.trainer.world_size * self.trainer.accumulate_grad_batches
        flow_loss = found["squared_error"] * (packs / max(batch.step_targets, 1))
        text_loss = found["cross_entropy"] * (packs / max(batch.step_labels, 1))
        # Without labels the text loss is an exact 0 that still ties the language head into the graph.
        loss = flow_loss + self.text_loss_weight * text_loss
        logged = {"train/flow": flow_loss, "train/text": text_loss}
        if "alignment" in found:
            loss = loss + self.alignment.weight * found["alignment"]
            logged["train/alignment"] = found["alignment"]
        if "blocked_share" in found:
            logged["bridge/blocked_share"] = found["blocked_share"]
        self._log_step({"train/loss": loss, **logged}, last=(batch_idx + 1) % self.trainer.accumulate_grad_batches == 0)
        return loss

    def _log_step(self, values: Mapping[str, Tensor], *, last: bool) -> None:
        """Logs means over the packs of an optimizer step and over ranks, at the last pack.

        Each rank's pack holds its share of a global mean, so the mean over ranks and packs is that mean.
        """
        for name, value in values.items():
            self._step_sums[name] = self._step_sums.get(name, 0) + value.detach()
        if not last:
            return
        packs = self.trainer.accumulate_grad_batches
        for name, total in self._step_sums.items():
            self.log(name, total / packs, prog_bar=name == "train/loss", sync_dist=True)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self._step_sums.clear()

    def on_train_start(self) -> None:
        """The rate of a run that goes on follows its present end, not the one that it was saved with."""
        forget_stops(self.trainer)
        config = self.optimizer_config
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = config.lr * config.rate_factor(self.trainer.global_step, self.trainer.max_steps)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.gradients.remember(batch.sequence.keys)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm over all shards and keeps a gradient that is not finite from the weights."""
        parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        norms = self.gradients.apply(parameters, gradient_clip_val, self.trainer.global_step + 1, self.device)
        self.log("gradient/norm", norms.total, prog_bar=True)
        self.log_dict({f"gradient/{group}": norm for group, norm in norms.groups.items()})
        if self.gradients.nonfinite == "skip":
            self.log("gradient/skipped_steps", float(self.gradients.skipped))

    def _evaluate(self, batch: Batch, name: str) -> None:
        found = self._losses(batch, sample_posterior=False)
        count = max(1, len(batch.sequence.target_index))
        loss = found["squared_error"] / count
        self.log(f"{name}/loss", loss, sync_dist=True, batch_size=count, prog_bar=True)
        if "blocked_share" in found:
            self.log(f"{name}/blocked_share", found["blocked_share"], sync_dist=True, batch_size=count)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    # ------------------------------------------------------------------ prediction
    @property
    def predictions(self) -> PredictionFolder:
        """Where predicted pictures go."""
        return PredictionFolder(Path(self.trainer.default_root_dir) / "predictions")

    def on_predict_start(self) -> None:
        """Refuses to add to pictures that were made with other settings."""
        settings = {
            "weights": weights_identity(self.init_from),
            "round": self.sampling_round,
            "size": self.image_size,
            "dtype": str(self.model.vae2llm.weight.dtype),
            "sampling": {k: v for k, v in dataclasses.asdict(self.sampling).items() if k not in ("height", "width")},
            "exif_orientation": self.trainer.datamodule.packing.exif_orientation,  # type: ignore[attr-defined]
        }
        self.predictions.begin(settings, write=self.trainer.is_global_zero)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Path]:
        """Generates a picture per sample, see `PredictionFolder`; finished ones are kept, broken ones made again."""
        folder = self.predictions
        for wanted, prompt in zip(batch.samples, prompts_of(batch.sequence, self.image_size), strict=True):
            needed = not folder.is_finished(wanted)
            if is_sharded(self.model):  # all ranks must run it, or none: each holds a part of the weights
                flag = torch.tensor(float(needed), device=self.device)
                if not self.trainer.strategy.reduce(flag, reduce_op="max"):
                    continue
            elif not needed:
                continue
            task_type = wanted.metadata.get("task_type", "")
            seed = picture_seed(self.sampling.seed, self.sampling_round, wanted.key, task_type)
            noise = initial_noise(prompt, self.model, self.sequence_format, torch.Generator().manual_seed(seed))
            found = sample(self.model, self.sequence_format, [prompt], self.sampling, [noise])
            if needed:
                check_finite(found[0], str(folder.file_of(wanted)))
                save_image(to_uint8(decode_latents(self.model, found[0])).numpy(), folder.file_of(wanted))
        return [folder.file_of(wanted) for wanted in batch.samples]

    # ------------------------------------------------------------------ description
    def describe(self) -> Mapping[str, Any]:
        """What made these weights, for `training.json` in the folder that they are saved to."""
        return {
            "stage": type(self).__name__,
            "init_from": self.init_from,
            "start": self._start_identity,
            "trainable": list(self.trainable),
            "bridge": None if self.bridge is None else dataclasses.asdict(self.bridge),
            "mask_sampling": self.sampling.bridge is not None,
            "lora": None if self.lora is None else dataclasses.asdict(self.lora),
            "ema": self.ema_config.decay,
            "steps": self.trainer.global_step,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A snapshot holds only what trained: without the weights beside it, it means nothing."""
        described = checkpoint.get(DESCRIPTION, {})
        if described.get("start", self._start_identity) != self._start_identity:
            raise UserError(
                f"the snapshot of {described['stage']} at step {described['steps']} goes with the weights that it "
                f"started from, {described['init_from']}, not {self.init_from}; set model.init_args.init_from"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What `export` must know of a snapshot."""
        checkpoint[DESCRIPTION] = dict(self.describe())
