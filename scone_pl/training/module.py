"""The LightningModule that every stage is: when what happens. What happens is in the parts that it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from scone_pl.checkpoints.adapters import adapter_identity
from scone_pl.checkpoints.model import autoencoder_identity
from scone_pl.data.stream import Batch
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.messages import warn, warn_without_effect
from scone_pl.model.network import Network
from scone_pl.model.quantized import weight_shapes
from scone_pl.training.ema import EMA
from scone_pl.training.gradients import GradientGuard
from scone_pl.training.metrics import BridgeQuality, Means, blocked_fraction
from scone_pl.training.network import StageNetwork
from scone_pl.training.objective import Objective
from scone_pl.training.outcome import forget_stops
from scone_pl.training.parts import check_parts, count_trainable
from scone_pl.training.predictor import Predictor
from scone_pl.training.provenance import DESCRIPTION, provenance_in
from scone_pl.training.results import TrainedWeights
from scone_pl.training.runs import snapshot_identity, weights_identity
from scone_pl.training.settings import StageSettings
from scone_pl.training.sharding import FullySharded, check_sharding
from scone_pl.training.start import check_start
from scone_pl.training.trainer_attributes import data_module


class SconeModule(pl.LightningModule):
    """All stages. They differ by settings, not by code: see `stages.py`.

    Attributes:
        settings: what the recipe says.
        network: how the model is built.
        model: the network, once the trainer has asked for it.
        objective: what is minimised.
        predictor: samples images for `predict`.
        gradients: clips, and keeps non-finite gradients from the weights.
        ema: moving average of the weights that train, if there is one.
    """

    model: Network

    def __init__(self, settings: StageSettings) -> None:
        """Checks the checkpoint folder; weights are read when the trainer asks for the model."""
        super().__init__()
        self.settings = settings
        folder = check_start(settings.init_from)
        self.network = StageNetwork.open(folder, settings)
        self.tokenizer = Tokenizer.from_folder(folder)
        self.tokenizer.check_embedding(self.network.config.decoder.vocab_size)
        self.sequence_format = self.network.config.sequence_format(self.tokenizer.special)
        self.objective = Objective.of(settings)
        self.predictor = Predictor.of(settings, self.sequence_format, self.network.config)
        self.gradients = GradientGuard(settings.nonfinite_gradient)
        self.ema: EMA | None = None
        self._start_identity = weights_identity(folder)
        names = ["loss", "flow", "text"]
        names += ["alignment"] if self.objective.aligned else []
        blocked = ["blocked_fraction"] if settings.bridge is not None else []
        self._step_means = Means(*names, *blocked)
        self._evaluation_means = Means("loss", *blocked)
        self._bridge_quality = BridgeQuality()

    @property
    def autoencoder_identity(self) -> str:
        """See `checkpoints.model.autoencoder_identity`."""
        return autoencoder_identity(self.network.folder)

    # ------------------------------------------------------------------ building
    def configure_model(self) -> None:
        """Builds the network on the trainer's device, sharded if the strategy says so."""
        if hasattr(self, "model"):
            return
        if self.settings.bridge is not None:
            warn_without_effect("model.bridge", self.settings.bridge.without_effect)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.settings.check_trains()
            check_parts(self.settings.trainable, self.network.config)
        check_sharding(self.settings.sharding, self.trainer)
        self.model, read = self.network.build(self.trainer.strategy.root_device, self.device_mesh)
        total = sum(shape.numel() for shape in weight_shapes(self.model).values())
        trained = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in count_trainable(self.model).items())
        rank_zero_info(f"{type(self).__name__}: {total / 1e6:.2f} M parameters, training {trained}; {read}")

    def on_fit_start(self) -> None:
        if self.settings.adapters:
            raise UserError("model.adapters are merged for predict, validate and test; leave them out of fit")
        decay = self.settings.ema.decay
        if decay and not isinstance(self.trainer.strategy, FullySharded):
            raise UserError("model.ema.decay needs trainer.strategy fully_sharded, which saves the average")
        if decay:
            self.ema = EMA(self.model.named_parameters(), decay)

    @property
    def evaluates_average(self) -> bool:
        """Whether a snapshot's average is evaluated instead of the weights themselves: it is what would be exported."""
        ema = self.settings.ema
        return self.trainer.state.fn != TrainerFn.FITTING and bool(ema.decay) and ema.export

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config, max_steps = self.settings.optimizer, self.trainer.max_steps
        if config.decay_steps and max_steps < 0:
            raise UserError("model.optimizer.decay_steps counts from the end; set trainer.max_steps")
        if 0 < max_steps < config.warmup_steps / 10:
            warn(
                f"model.optimizer.warmup_steps is {config.warmup_steps}, so in {max_steps} steps the learning rate "
                f"reaches {100 * max_steps / config.warmup_steps:.1f} % of lr; lower it for a short run"
            )
        optimizer = config.build(p for p in self.model.parameters() if p.requires_grad)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.rate_factor(step, max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """As usual, then the average follows."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update()

    # ------------------------------------------------------------------ training
    def on_train_start(self) -> None:
        """The learning rate of a resumed run follows its present end, not the one that it was saved with."""
        forget_stops(self.trainer)
        config = self.settings.optimizer
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = config.lr * config.rate_factor(self.trainer.global_step, self.trainer.max_steps)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.gradients.remember(batch.sequence.keys)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.objective.pack_losses(self.model, batch, self.device, sample_posterior=True)
        accumulated = self.trainer.accumulate_grad_batches
        step = self.objective.step_losses(
            losses, targets=batch.step_targets, labels=batch.step_labels, packs=self.trainer.world_size * accumulated
        )
        self._step_means.update(step.named())
        if losses.bridge is not None:
            fraction, references = blocked_fraction(losses.bridge, batch.sequence)
            self._step_means.update({"blocked_fraction": fraction}, references)
        if (batch_idx + 1) % accumulated == 0:
            self._log_step()
        return step.total

    def _log_step(self) -> None:
        """Logs the means over all packs of an optimizer step, at the last of them."""
        for name, value in self._step_means.compute().items():
            self.log(
                f"bridge/{name}" if name == "blocked_fraction" else f"train/{name}", value, prog_bar=name == "loss"
            )
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self._step_means.reset()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm over all shards, and keeps a non-finite gradient from the weights."""
        parameters = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        norms = self.gradients.apply(parameters, gradient_clip_val, self.trainer.global_step + 1, self.device)
        self.log("gradient/norm", norms.total, prog_bar=True)
        self.log_dict({f"gradient/{group}": norm for group, norm in norms.groups.items()})
        if self.gradients.nonfinite == "skip":
            self.log("gradient/skipped_steps", float(self.gradients.skipped))

    # ------------------------------------------------------------------ validation
    def _evaluate(self, batch: Batch) -> None:
        losses = self.objective.pack_losses(self.model, batch, self.device, sample_posterior=False)
        pack, targets = batch.sequence, batch.sequence.target_weight
        self._evaluation_means.update({"loss": losses.squared_error / max(1, targets)}, float(targets))
        if losses.bridge is not None and self.settings.bridge is not None:
            fraction, references = blocked_fraction(losses.bridge, pack)
            self._evaluation_means.update({"blocked_fraction": fraction}, references)
            self._bridge_quality.update(losses.bridge, self.settings.bridge, pack)

    def _log_evaluation(self, name: str) -> None:
        values = self._evaluation_means.compute()
        if self.settings.bridge is not None:
            values |= {f"bridge_{quality}": value for quality, value in self._bridge_quality.compute().items()}
        for key, value in values.items():
            self.log(f"{name}/{key}", value, prog_bar=key == "loss")
        self._evaluation_means.reset()
        self._bridge_quality.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    # ------------------------------------------------------------------ prediction
    @property
    def prediction_folder(self) -> Path:
        """Where predicted images go."""
        return Path(self.trainer.default_root_dir) / "predictions"

    def on_predict_start(self) -> None:
        """Refuses to add to images that were made with other settings."""
        recorded = {
            "weights": self._start_identity,
            "snapshot": self._evaluated_snapshot(),
            "dtype": str(self.model.dtype),
            "exif_orientation": data_module(self.trainer).packing.exif_orientation,
            "adapters": [[adapter_identity(a.path), a.scale] for a in self.settings.adapters],
        }
        if self.settings.quantization is not None:  # earlier versions did not record it
            recorded["quantization"] = self.settings.quantization
        self.predictor.begin(self.prediction_folder, recorded, write=self.trainer.is_global_zero)

    def _evaluated_snapshot(self) -> str | None:
        path = self.trainer.ckpt_path
        if path is None:
            return None
        return snapshot_identity(Path(path)) + (" average" if self.evaluates_average else "")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Path]:
        """Generates an image per sample; see `Predictor.predict`."""
        return self.predictor.predict(self.model, batch, self.prediction_folder, self._needed_by_any)

    def _needed_by_any(self, needed: bool) -> bool:
        flag = torch.tensor(float(needed), device=self.device)
        return bool(self.trainer.strategy.reduce(flag, reduce_op="max"))

    # ------------------------------------------------------------------ what it leaves
    def describe(self) -> Mapping[str, Any]:
        """Training provenance, for snapshots and for `training.json` beside exported weights."""
        settings = self.settings
        return {
            "stage": type(self).__name__,
            "init_from": settings.init_from,
            "start": self._start_identity,
            "trainable": list(settings.trainable),
            "bridge": None if settings.bridge is None else dataclasses.asdict(settings.bridge),
            "mask_sampling": self.predictor.sampling.bridge is not None,
            "lora": None if settings.lora is None else dataclasses.asdict(settings.lora),
            "quantization": settings.quantization,
            "ema": settings.ema.decay,
            "steps": self.trainer.global_step,
        }

    def trained_weights(self) -> TrainedWeights:
        """What training changed, to be exported."""
        averaged = self.ema is not None and self.settings.ema.export
        return TrainedWeights(
            model=self.model,
            init_from=self.settings.init_from,
            average=self.ema.average if averaged and self.ema is not None else None,
            lora=self.settings.lora,
            description=self.describe(),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A snapshot holds only what trained: without the weights beside it, it means nothing."""
        described = provenance_in(checkpoint, "the snapshot")
        if described.get("start", self._start_identity) != self._start_identity:
            raise UserError(
                f"the snapshot of {described['stage']} at step {described['steps']} goes with the weights that it "
                f"started from, {described['init_from']}, not {self.settings.init_from}; set model.init_args.init_from"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the training provenance, which `export` needs."""
        checkpoint[DESCRIPTION] = dict(self.describe())
