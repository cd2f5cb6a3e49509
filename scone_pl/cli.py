"""The command line: LightningCLI, and what Scone adds to it.

Added keys: `output_dir` (everything that a run writes), `chain` (stages one after the other, see
`training/chain.py`), `checkpoint` (when to save, see `training/saving.py`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from scone_pl.complaints import one_line
from scone_pl.data.datamodule import PackedDataModule
from scone_pl.errors import UserError
from scone_pl.files import write_text
from scone_pl.training.callbacks import DataProgress, Previews, StepProgress
from scone_pl.training.chain import ChainStep, check_names, needs_own_process, plan, run_in_own_process
from scone_pl.training.module import SconeModule
from scone_pl.training.monitoring import Monitoring
from scone_pl.training.results import write_result
from scone_pl.training.runs import RunFolder
from scone_pl.training.saving import Saving
from scone_pl.training.sharding import FullySharded
from scone_pl.training.start import check_start

FREE_ON_RESUME = {
    *("init_from", "attention", "activation_checkpointing", "layers_kept", "sharding", "nonfinite_gradient"),
    *("sampling", "mask_sampling", "sampling_seed", "sampling_round", "height", "width"),
}
"""Model settings that may change when a run goes on: where and how it computes, not what."""


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
            parser_kwargs={verb: {"prog": f"python -m scone_pl {verb}"} for verb in self.subcommands()},
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
        parser.add_lightning_class_args(Saving, "checkpoint")
        parser.add_lightning_class_args(Previews, "previews")
        parser.add_lightning_class_args(Monitoring, "monitoring")

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
        self._get(self.config_init, "checkpoint").folder = RunFolder(folder).checkpoints
        trainer = self._get(self.config_init, "trainer")
        settings = {"default_root_dir": str(folder), **kwargs}
        if str(trainer.get("precision")) not in ("None", "32", "32-true", "bf16-mixed"):
            raise UserError(
                f"trainer.precision {trainer['precision']} would round the weights that the optimizer updates; use "
                "32-true with model.sharding.compute_dtype bfloat16 (FullySharded), or bf16-mixed"
            )
        if isinstance(interval := trainer.get("val_check_interval"), int):  # Lightning counts packs
            settings["val_check_interval"] = interval * trainer["accumulate_grad_batches"]
        if trainer.get("logger") in (None, True):
            settings["logger"] = TensorBoardLogger(folder, name="", version="tensorboard")
        callbacks = [DataProgress(), *(trainer.get("callbacks") or [])]
        if trainer.get("enable_progress_bar") is not False:
            callbacks.append(StepProgress())
        settings["callbacks"] = callbacks
        return super().instantiate_trainer(**settings)

    # ------------------------------------------------------------------ fit
    def fit(self, **kwargs: Any) -> None:
        """Trains, resuming where an earlier run of the same folder stopped, and writes the weights at the end."""
        folder = RunFolder(Path(self.settings.output_dir))
        if self.trainer.fast_dev_run:
            self.trainer.fit(**kwargs)
            return
        max_steps = self.trainer.max_steps
        self._check_settings(folder.path / "config.yaml")
        if max_steps >= 0 and folder.finished_steps >= max_steps:
            folder.begin(self.model.init_from, write=False)
            rank_zero_info(f"{folder.path}: already trained for {folder.finished_steps} steps, nothing to do")
            return
        if self.trainer.is_global_zero:
            self._lock = folder.occupy()  # for as long as this object lives
        write, given = self.trainer.is_global_zero, kwargs.get("ckpt_path")
        kwargs["ckpt_path"] = folder.begin(self.model.init_from, given, write=write)
        rank_zero_info(f"--- {self.model.init_from} -> {folder.weights}")
        if self.trainer.is_global_zero:
            text = self._parser(self.subcommand).dump(self.settings, skip_none=False)
            write_text(text, folder.path / "config.yaml")
        self.trainer.fit(**kwargs)
        write_result(self.model, folder.weights, write=self.trainer.is_global_zero)
        self.trainer.strategy.barrier("weights written")
        rank_zero_info(f"{folder.weights}: written after {self.trainer.global_step} steps")

    def _check_settings(self, file: Path) -> None:
        """Refuses to resume a run, or to call it finished, when what it trains has other settings now.

        A resumed optimizer keeps its state, so a new learning rate would not even act.

        Raises:
            UserError: naming the settings that differ from those in `file`.
        """
        last = RunFolder(file.parent).last_snapshot
        if not file.is_file() or last is None:
            return
        if last.is_dir() != isinstance(self.trainer.strategy, FullySharded):
            strategy = "fully_sharded" if last.is_dir() else "another than fully_sharded"
            raise UserError(f"{last}: of trainer.strategy {strategy}; go on with it, or choose another --output_dir")
        before = yaml.safe_load(file.read_text())["model"]
        now = yaml.safe_load(self._parser(self.subcommand).dump(self.settings, skip_none=False))["model"]
        changed = ["class_path"] if before["class_path"] != now["class_path"] else []
        names = before["init_args"].keys() & now["init_args"].keys() - FREE_ON_RESUME
        changed += sorted(n for n in names if before["init_args"][n] != now["init_args"][n])
        if changed:
            raise UserError(
                f"{file.parent}: began with another model.{', model.'.join(changed)}; restore it, delete that folder, "
                "or choose another --output_dir"
            )


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


_NOISE = ("litlogger", "TPU available", "MEMBER: 1/1", "Starting with 1 processes")


def _worth_reading(record: logging.LogRecord) -> bool:
    """Leaves out Lightning's lines about hardware that is not there, products to try, and processes without peers."""
    return not any(text in record.getMessage() for text in _NOISE)


def main(args: list[str]) -> int:
    """Runs `fit`, `validate`, `test` or `predict`."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).addFilter(_worth_reading)
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
    weights = settings.model.init_args.init_from
    if not settings.chain:
        result = RunFolder(Path(settings.output_dir)).weights
        if args[0] != "fit" and not settings.ckpt_path:  # a snapshot goes with the weights that it started from
            if result.is_dir():
                rank_zero_info(f"weights: {result}, the result of {settings.output_dir}")
                return [[*args, "--model.init_args.init_from", str(result)]]
            rank_zero_info(f"weights: {weights}, as {settings.output_dir} has no result yet")
        check_start(weights)
        return [args]
    chain = [ChainStep(**step.as_dict()) for step in settings.chain]
    check_names(chain)
    planned = plan(args, chain, weights, settings.output_dir)
    steps = [parse(command).settings for command in planned]
    if args[0] != "fit" and settings.ckpt_path:
        return planned[-1:]
    if args[0] != "fit":
        result = RunFolder(Path(steps[-1].output_dir)).weights
        check_start(str(result))
        return [[*planned[-1], "--model.init_args.init_from", str(result)]]
    check_start(weights)
    check_data(steps)
    check_stale(steps)
    return planned


def check_data(steps: Sequence[Any]) -> None:
    """Raises `UserError` if a data set that any step of a chain needs is not there."""
    for step in steps:
        for source in [*(step.data.train or []), *(step.data.val or [])]:
            if "://" not in source.path and not Path(source.path).exists():
                raise UserError(f"{source.path}: no such folder; {step.output_dir} needs it (see `shards convert`)")


def check_stale(steps: Sequence[Any]) -> None:
    """Raises `UserError` if a step would train on, and so change the weights that a later one has started from."""
    for i, step in enumerate(steps):
        unfinished = RunFolder(Path(step.output_dir)).finished_steps < step.trainer.max_steps
        begun = [s.output_dir for s in steps[i + 1 :] if RunFolder(Path(s.output_dir)).last_snapshot]
        if unfinished and begun:
            raise UserError(
                f"{step.output_dir} would train on to {step.trainer.max_steps} steps, but {' and '.join(begun)} "
                "started from its present weights; delete the latter, or choose another --output_dir"
            )
