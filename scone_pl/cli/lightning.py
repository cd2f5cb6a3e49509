"""LightningCLI for one stage, and what Scone adds to it; `cli/stages.py` plans and runs the stages of a chain.

Added keys: `output_dir` (everything that a run writes), `chain` (stages one after the other, see
`training/chain.py`), `checkpoint` (when to save, see `training/saving.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import yaml
from jsonargparse._util import resolved_import_paths
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from scone_pl import deprecated
from scone_pl.cli.environment import check_environment
from scone_pl.cli.failures import refused_by_library
from scone_pl.cli.parsing import one_line, parse_quietly, read_renamed_keys
from scone_pl.data.datamodule import PackedDataModule
from scone_pl.errors import UserError
from scone_pl.files import write_text
from scone_pl.messages import warn
from scone_pl.outputs import check_output_folder
from scone_pl.processes import tie_ranks
from scone_pl.training.callbacks import DataProgress, Previews
from scone_pl.training.chain import ChainStep
from scone_pl.training.ckpt_path import OPTIONS
from scone_pl.training.curves import keep_training
from scone_pl.training.module import SconeModule
from scone_pl.training.monitoring import Monitoring
from scone_pl.training.outcome import (
    LEFT_OUT_STATUS,
    UNFINISHED_STATUS,
    Outcome,
    early_stopping_settings,
    read_outcome,
    reason_of_end,
)
from scone_pl.training.results import write_result
from scone_pl.training.resume_settings import check_strategy, check_unchanged
from scone_pl.training.runs import RunFolder
from scone_pl.training.saving import Saving, Stopped
from scone_pl.training.stages import BridgeFormation, BridgeGuidance, Composition
from scone_pl.training.trainer_arguments import trainer_arguments
from scone_pl.training.trainer_attributes import is_trial
from scone_pl.training.trainer_settings import check_trainer
from scone_pl.training.values import check_values

STAGES = (Composition, BridgeFormation, BridgeGuidance)
"""jsonargparse finds a class by its short name (`--model BridgeGuidance`) once it is imported."""


_PARSER_ATTRIBUTES = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
_parsers: dict[str, Any] = {}
"""What `SconeCLI.setup_parser` has built, by the attribute that holds it."""

for _public in (Composition, BridgeFormation, BridgeGuidance, PackedDataModule, DataProgress, Previews):
    # Else it would be recorded as `scone_pl.NAME`, the shortest path, and differ from what older runs hold.
    resolved_import_paths.add(_public, f"{_public.__module__}.{_public.__qualname__}")


class SconeCLI(LightningCLI):
    """LightningCLI over `SconeModule` and `PackedDataModule`, for one stage."""

    model: SconeModule
    datamodule: PackedDataModule

    def __init__(self, args: ArgsType = None, *, until: Literal["parse", "build", "run"] = "run") -> None:
        """Parses `args`, builds trainer, model and data, and does what they say; or stops after an earlier step."""
        self._until = until
        self.status = 0
        """Exit status."""
        super().__init__(
            SconeModule,
            PackedDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            trainer_defaults={"enable_model_summary": False},
            seed_everything_default=1234,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "allow_abbrev": False,
                **{verb: {"prog": f"python -m scone_pl {verb}", "allow_abbrev": False} for verb in self.subcommands()},
            },
            args=args,
        )

    def setup_parser(self, *args: Any) -> None:
        """Builds the parsers once: that takes longer than parsing, and a command line is parsed several times."""
        if _parsers:
            vars(self).update(_parsers)
            return
        super().setup_parser(*args)
        for parser in self._subcommand_parsers.values():
            for action in parser._actions:
                action.help = OPTIONS.get(action.dest, action.help)
        _parsers.update({name: getattr(self, name) for name in _PARSER_ATTRIBUTES})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Unknown keys and wrong types end in a `UserError` of one line."""
        read_renamed_keys()
        assert args is None or isinstance(args, list | tuple)  # `main` passes what was typed
        typed = [str(arg) for arg in (args or ())]
        typed = [*typed[:1], *deprecated.rename_options(typed[1:], "fit", recipe=True)]
        self.config = parse_quietly(parser, typed, self._subcommand_parsers)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would read the file here, and let hyperparameters in it override what was typed."""

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

    def _run_subcommand(self, subcommand: str) -> None:
        if self._until == "run":
            super()._run_subcommand(subcommand)

    def run(self) -> int:
        """Does what was parsed so far; the exit status."""
        self._until = "run"
        self._set_seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        assert self.subcommand is not None
        self._run_subcommand(self.subcommand)
        return self.status

    @property
    def settings(self) -> Any:
        """The parsed settings of the subcommand."""
        return self.config[self.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        folder = Path(self.settings.output_dir)
        self._get(self.config_init, "checkpoint").folder = RunFolder(folder).checkpoints
        trainer = self._get(self.config_init, "trainer")
        check_trainer(trainer, trains=self.subcommand == "fit")
        settings = {**trainer_arguments(trainer, folder), **kwargs}
        check_output_folder(folder)
        built = super().instantiate_trainer(**settings)
        keep_training(built.loggers)
        tie_ranks(built.strategy.launcher)
        return built

    def instantiate_classes(self) -> None:
        if self._until == "parse":
            return
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            if "Does not validate" in str(error):  # jsonargparse's report around what a constructor said
                raise UserError(one_line(str(error))) from error
            if refused_by_library(error):
                raise UserError(f"trainer, or a class named in the recipe: {error}") from error
            raise
        self.datamodule.overfit_packs = self.settings.trainer.overfit_batches

    # ------------------------------------------------------------------ fit
    def fit(self, **kwargs: Any) -> None:
        """Trains, resuming where an earlier run of the same folder stopped, and writes the weights at the end.

        What ends before it is finished leaves no weights; `status` then says so, see `outcome.py`.
        """
        self._refuse_weights_only(kwargs)
        folder = RunFolder(Path(self.settings.output_dir))
        if is_trial(self.trainer):
            self.trainer.fit(**kwargs)
            return
        max_steps, stopping = self.trainer.max_steps, early_stopping_settings(self.settings.trainer)
        text = self._parser(self.subcommand).dump(self.settings, skip_none=False)
        if (last := folder.last_snapshot) and (folder.path / "config.yaml").is_file():
            check_strategy(last, self.trainer.strategy)
            check_unchanged(folder.path / "config.yaml", yaml.safe_load(text))
        if folder.is_finished(max_steps, stopping):
            folder.begin(self.model.settings.init_from, kwargs.get("ckpt_path"), write=False)
            self._log_finished(folder)
            return
        leads = self.trainer.is_global_zero
        if leads:
            self._lock = folder.occupy()  # for as long as this object lives
        kwargs["ckpt_path"] = folder.begin(self.model.settings.init_from, kwargs.get("ckpt_path"), write=leads)
        rank_zero_info(f"--- {self.model.settings.init_from} -> {folder.weights}")
        if leads:
            write_text(text, folder.path / "config.yaml")
            folder.outcome_file.unlink(missing_ok=True)
        try:
            self.trainer.fit(**kwargs)
        except Stopped:
            if leads:
                Outcome("signal", self.trainer.global_step, max_steps, stopping).write(folder.outcome_file)
            raise
        outcome = Outcome(reason_of_end(self.trainer), self.trainer.global_step, max_steps, stopping)
        if outcome.finished:
            write_result(self.model.trained_weights(), folder.weights, write=leads)
            self.trainer.strategy.barrier("weights written")
            rank_zero_info(f"{folder.weights}: written after {outcome.steps} steps ({outcome.reason})")
        if leads:
            outcome.write(folder.outcome_file)
        if not outcome.finished:
            self._log_unfinished(folder, outcome)

    def _log_finished(self, folder: RunFolder) -> None:
        outcome = read_outcome(folder.outcome_file)
        early = outcome is not None and outcome.reason == "early_stopping"
        why = " (EarlyStopping; another trainer.max_steps trains on)" if early else ""
        rank_zero_info(f"{folder.path}: already trained for {folder.finished_steps} steps{why}, nothing to do")

    def _log_unfinished(self, folder: RunFolder, outcome: Outcome) -> None:
        end = f" of {outcome.max_steps}" if outcome.max_steps >= 0 else ""
        why = {"max_time": "trainer.max_time is over"}.get(outcome.reason, "a callback set should_stop")
        warn(
            f"{folder.path}: stopped after step {outcome.steps}{end}, as {why}; state saved, run the same command to "
            "resume"
        )
        # Lightning, which started the other ranks, would take their status for a crash.
        self.status = UNFINISHED_STATUS if self.trainer.is_global_zero else 0

    # ------------------------------------------------------------------ other verbs
    def validate(self, **kwargs: Any) -> None:
        """As Lightning does, from what `ckpt_path.evaluated` chose."""
        self._evaluate(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """See `validate`."""
        self._evaluate(self.trainer.test, kwargs)

    def predict(self, **kwargs: Any) -> None:
        """See `validate`."""
        if kwargs.get("return_predictions"):
            raise UserError(
                "--return_predictions true: has no effect on the command line; images are in output_dir/predictions"
            )
        self._evaluate(self.trainer.predict, kwargs)
        if left_out := self.datamodule.skipped.total():
            warn(
                f"predict: {left_out} prompts were left out, see above; all others are in "
                f"{self.model.prediction_folder}"
            )
            self.status = LEFT_OUT_STATUS if self.trainer.is_global_zero else 0

    def _evaluate(self, act: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self._refuse_weights_only(kwargs)
        if kwargs.get("ckpt_path"):
            # True of what trains; here nothing does.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
            check_strategy(Path(kwargs["ckpt_path"]), self.trainer.strategy)
        act(**kwargs)

    @staticmethod
    def _refuse_weights_only(kwargs: dict[str, Any]) -> None:
        if kwargs.get("weights_only") is False:
            raise UserError("--weights_only false would run code out of a snapshot; leave it out")
        if "weights_only" in kwargs:
            kwargs["weights_only"] = True


def parse(args: list[str]) -> SconeCLI:
    """Parses without instantiating anything.

    Raises:
        UserError: an unknown key, a wrong type, or a setting of the Trainer that would not be obeyed.
    """
    cli = SconeCLI(args, until="parse")
    check_trainer(cli.settings.trainer, trains=cli.subcommand == "fit")
    check_environment(cli.settings.trainer.devices)
    check_values(cli.settings)
    return cli
