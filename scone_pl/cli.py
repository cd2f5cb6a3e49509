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
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from scone_pl.checkpoints import save_pretrained
from scone_pl.data.datamodule import PackedDataModule
from scone_pl.errors import UserError
from scone_pl.training.callbacks import DataProgress, Previews, Throughput
from scone_pl.training.chain import ChainStep, arguments_of_step, check_names, start_weights, step_folder
from scone_pl.training.module import SconeModule
from scone_pl.training.runs import RunFolder

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class SconeCLI(LightningCLI):
    """LightningCLI over `SconeModule` and `PackedDataModule`, for one stage."""

    model: SconeModule
    datamodule: PackedDataModule

    def __init__(self, args: ArgsType = None, *, run: bool = True) -> None:
        """Parses `args` and, unless `run` is false, does what they say."""
        self._run_now = run
        super().__init__(
            SconeModule,
            PackedDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
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
            }
        )
        parser.add_lightning_class_args(Previews, "previews")

    def instantiate_classes(self) -> None:
        if self._run_now:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if self._run_now:
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
        settings["callbacks"] = [DataProgress(), Throughput(), *(trainer.get("callbacks") or [])]
        return super().instantiate_trainer(**settings)

    # ------------------------------------------------------------------ fit
    def fit(self, **kwargs: Any) -> None:
        """Trains, resuming where an earlier run of the same folder stopped, and writes the weights at the end."""
        folder = RunFolder(Path(self.settings.output_dir))
        max_steps = self.trainer.max_steps
        if max_steps >= 0 and folder.finished_steps >= max_steps and not kwargs.get("ckpt_path"):
            folder.begin(self.model.init_from)
            rank_zero_info(f"{folder.path}: already trained for {folder.finished_steps} steps, nothing to do")
            return
        resume = folder.begin(self.model.init_from)
        if not kwargs.get("ckpt_path"):
            kwargs["ckpt_path"] = resume
        self._write_config(folder.path / "config.yaml", resuming=resume is not None)
        self.trainer.fit(**kwargs)
        if self.trainer.interrupted:
            raise KeyboardInterrupt
        if self.trainer.fast_dev_run:
            return
        self.trainer.save_checkpoint(folder.last_checkpoint)
        if self.trainer.is_global_zero:
            save_pretrained(
                self.model.model,
                folder.weights,
                assets_from=self.model.init_from,
                training=dict(self.model.describe()),
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
            return SconeCLI(args, run=False)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise UserError(_one_line(complaints.getvalue())) from None


def _one_line(text: str) -> str:
    """Boils jsonargparse's report (usage, tip, error over several lines) down to its error."""
    message = text.rsplit("error: ", 1)[-1]
    return " ".join(message.split())


def main(args: list[str]) -> int:
    """Runs `fit`, `validate`, `test` or `predict`."""
    sys.argv = [sys.argv[0]]  # LightningCLI warns about the process's own arguments otherwise
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    if {"--help", "-h"} & set(args) or any(
        a.startswith(("--print_config", "--model.help", "--data.help")) for a in args
    ):
        SconeCLI(args, run=False)
        return 0
    settings = parse(args).settings
    if not settings.chain:
        SconeCLI(args)
        return 0
    chain = [ChainStep(**step.as_dict()) for step in settings.chain]
    check_names(chain)
    init_from, output_dir = settings.model.init_args.init_from, settings.output_dir
    indices = range(len(chain)) if args[0] == "fit" else [len(chain) - 1]
    for only_parse in (True, False):  # a wrong key in the last step must not show after days
        for i in indices:
            step = chain[i]
            folder = step_folder(output_dir, step)
            weights = start_weights(init_from, output_dir, chain, i)
            if args[0] != "fit":
                weights = str(folder / "weights")
            with arguments_of_step(args, step, weights, str(folder)) as step_args:
                if only_parse:
                    parse(step_args)
                else:
                    rank_zero_info(f"--- {step.name} ({i + 1} of {len(chain)}): {weights} -> {folder}/weights")
                    SconeCLI(step_args)
    return 0
