"""The command line: LightningCLI, and what Scone adds to it.

Added keys: `output_dir` (everything that a run writes), `chain` (stages one after the other, see
`training/chain.py`), `checkpoint` (Lightning's ModelCheckpoint).
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from scone_pl.checkpoints import save_pretrained
from scone_pl.complaints import one_line
from scone_pl.data.datamodule import PackedDataModule
from scone_pl.errors import UserError
from scone_pl.training.callbacks import DataProgress, Previews, StepProgress, Throughput
from scone_pl.training.chain import ChainStep, check_names, needs_own_process, plan, run_in_own_process
from scone_pl.training.module import SconeModule
from scone_pl.training.runs import RunFolder


class SconeCLI(LightningCLI):
    """LightningCLI over `SconeModule` and `PackedDataModule`, for one stage."""

    model: SconeModule
    datamodule: PackedDataModule

    def __init__(self, args: ArgsType = None, *, until: Literal["parse", "build", "run"] = "run") -> None:
        """Parses `args`, builds trainer, model and data, and does what they say; or stops after an earlier step."""
        self._until = until
        super().__init__(
            SconeModule,
            PackedDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            trainer_defaults={"enable_model_summary": False},
            seed_everything_default=1234,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output_dir", type=str, default="runs/scone", help="Folder for all that a run writes.")
        parser.add_argument(
            "--chain",
            type=list[ChainStep] | None,
            default=None,
            help="Stages to run one after the other; each overrides model, data and trainer.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.save_last": True,
                "checkpoint.filename": "{step}",
                "checkpoint.every_n_train_steps": 500,
                "checkpoint.save_on_exception": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(Previews, "previews")

    def _set_seed(self) -> None:
        if self._until != "parse":
            super()._set_seed()

    def instantiate_classes(self) -> None:
        if self._until == "parse":
            return
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "Does not validate" in str(error):  # jsonargparse's report around what a constructor said
                raise UserError(one_line(str(error))) from error
            raise

    def _run_subcommand(self, subcommand: str) -> None:
        if self._until == "run":
            super()._run_subcommand(subcommand)

    @property
    def settings(self) -> Any:
        """The parsed settings of the subcommand."""
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        folder = Path(self.settings.output_dir)
        self._get(self.config_init, "checkpoint").dirpath = str(folder / "checkpoints")
        trainer = self._get(self.config_init, "trainer")
        settings = {"default_root_dir": str(folder), **kwargs}
        if trainer.get("logger") in (None, True):
            settings["logger"] = TensorBoardLogger(folder, name="", version="tensorboard")
        callbacks = [DataProgress(), Throughput(), *(trainer.get("callbacks") or [])]
        if trainer.get("enable_progress_bar") is not False:
            callbacks.append(StepProgress())
        settings["callbacks"] = callbacks
        return super().instantiate_trainer(**settings)

    # ------------------------------------------------------------------ fit
    def fit(self, **kwargs: Any) -> None:
        """Trains, resuming where an earlier run of the same folder stopped, and writes the weights at the end."""
        folder = RunFolder(Path(self.settings.output_dir))
        max_steps = self.trainer.max_steps
        if max_steps >= 0 and folder.finished_steps >= max_steps and not kwargs.get("ckpt_path"):
            folder.begin(self.model.init_from, write=False)
            rank_zero_info(f"{folder.path}: already trained for {folder.finished_steps} steps, nothing to do")
            return
        resume = folder.begin(self.model.init_from, write=self.trainer.is_global_zero)
        if not kwargs.get("ckpt_path"):
            kwargs["ckpt_path"] = resume
        rank_zero_info(f"--- {self.model.init_from} -> {folder.weights}")
        if self.trainer.is_global_zero:
            self._write_config(folder.path / "config.yaml", resuming=resume is not None)
        try:
            self.trainer.fit(**kwargs)
        except SystemExit:
            if self.trainer.interrupted:
                raise KeyboardInterrupt from None  # Lightning's way out of Ctrl-C, its checkpoint written
            raise
        if self.trainer.fast_dev_run:
            return
        self.trainer.save_checkpoint(folder.last_checkpoint, weights_only=False)
        save_pretrained(
            self.model.model,
            folder.weights,
            assets_from=self.model.init_from,
            training=dict(self.model.describe()),
            write=self.trainer.is_global_zero,
        )
        self.trainer.strategy.barrier("weights written")
        rank_zero_info(f"{folder.weights}: written after {self.trainer.global_step} steps")

    def _write_config(self, file: Path, *, resuming: bool) -> None:
        """Stores the resolved settings, and says which differ from those that the run began with."""
        text = self._parser(self.subcommand).dump(self.settings, skip_none=False)
        if resuming and file.is_file():
            before, now = yaml.safe_load(file.read_text()), yaml.safe_load(text)
            changed = [key for key in ("model", "data") if before.get(key) != now.get(key)]
            for key in changed:
                rank_zero_warn(f"{file}: resuming with other `{key}` settings than the run began with")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def parse(args: list[str]) -> SconeCLI:
    """Parses without instantiating anything; unknown keys and wrong types end in a `UserError` of one line."""
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            sys.argv[1:] = args  # LightningCLI reads them there, and warns if they come another way
            return SconeCLI(until="parse")
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise UserError(one_line(complaints.getvalue())) from None


def _worth_reading(record: logging.LogRecord) -> bool:
    """Leaves out Lightning's lines about hardware that is not there and products to try."""
    return not any(text in record.getMessage() for text in ("litlogger", "TPU available"))


def main(args: list[str]) -> int:
    """Runs `fit`, `validate`, `test` or `predict`."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_worth_reading)
    if {"--help", "-h"} & set(args) or any(
        a.startswith(("--print_config", "--model.help", "--data.help")) for a in args
    ):
        sys.argv[1:] = args
        SconeCLI(until="parse")
        return 0
    planned = commands(args)
    apart = len(planned) > 1 and needs_own_process(parse(planned[0]).settings.trainer.devices)
    for command in planned:
        if apart:
            if status := run_in_own_process(command):
                return status
        else:
            sys.argv[1:] = command  # what Lightning starts the other ranks with
            SconeCLI()
    return 0


def commands(args: list[str]) -> list[list[str]]:
    """The command lines of single stages that `args` stands for, each already parsed once.

    A wrong key in the last step of a chain must not show after days. Verbs other than `fit` mean the chain's result.
    """
    settings = parse(args).settings
    if not settings.chain:
        return [args]
    chain = [ChainStep(**step.as_dict()) for step in settings.chain]
    check_names(chain)
    planned = plan(args, chain, settings.model.init_args.init_from, settings.output_dir)
    for command in planned:
        parse(command)
    if args[0] == "fit":
        return planned
    return [[*planned[-1], "--model.init_args.init_from", f"{settings.output_dir}/{chain[-1].name}/weights"]]
