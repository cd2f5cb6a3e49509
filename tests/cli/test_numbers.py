"""Every number that an option or key takes is refused outside its range: one line with its name, before any work."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonargparse import Namespace
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.lightning import SconeCLI, parse
from scone_pl.cli.verbs import VERBS
from scone_pl.data.datamodule import PackedDataModule
from scone_pl.errors import UserError
from scone_pl.ranges import check_number, check_whole
from scone_pl.training.callbacks import Previews
from scone_pl.training.chain import ChainStep
from scone_pl.training.monitoring import Monitoring
from scone_pl.training.saving import Saving
from scone_pl.training.settings import StageSettings
from scone_pl.training.trainer_settings import check_trainer
from scone_pl.training.values import check_values

RECIPE = f"{ROOT}/experiments/mini/stage1.yaml"
HUGE = 10**400
FLOATS = (math.nan, math.inf, -math.inf, HUGE, -HUGE, True)
WHOLES = (*FLOATS, -1, 10**30, 0.5)
MAY_BE_NEGATIVE = {
    "model.bridge.threshold",
    "model.bridge.source_layer",
    "model.sampling.bridge.source_layer",
    "trainer.max_steps",
    "trainer.num_sanity_val_steps",
}
EVERYTHING = (
    "--model.init_args.lora={}",
    "--model.init_args.bridge={quantile: 0.5}",
    "--model.init_args.sampling.step_cache={}",
    "--model.init_args.sampling.bridge={quantile: 0.5}",
    "--model.init_args.sampling.height=16",
    "--model.init_args.sampling.width=16",
    "--data.packing={}",
    "--data.shuffle_window=1",
    "--data.storage.cache_gigabytes=1",
    "--data.train=[{path: x}]",
    "--monitoring.peak_tflops=1",
    "--chain=null",
)


# ---------------------------------------------------------------------- the two checks
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, HUGE, True, None, "3", [3], 0, 11], ids=lambda value: f"{value!s:.9}"
)
def test_numbers_outside_their_range_are_named(value: Any) -> None:
    with pytest.raises(UserError, match=r"^a\.b is .*; it must be a finite number, more than 0 and at most 10$"):
        check_number("a.b", value, above=0, maximum=10)


@pytest.mark.parametrize(
    "value", [math.nan, 2.0, HUGE, True, None, "3", 2**63, 0, -1], ids=lambda value: f"{value!s:.9}"
)
def test_whole_numbers_outside_their_range_are_named(value: Any) -> None:
    with pytest.raises(UserError, match=r"^a\.b is .*; it must be a whole number, at least 1$") as caught:
        check_whole("a.b", value, minimum=1)
    assert len(str(caught.value)) < 200


def test_numbers_within_their_range_pass() -> None:
    check_number("a", 0.5, above=0, below=1)
    check_number("a", 1, minimum=1, maximum=1)
    check_whole("a", 2**63 - 1)
    check_whole("a", 3, minimum=3, maximum=3)


# ---------------------------------------------------------------------- recipes
def options_of(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def numbers(name: str, hint: Any) -> Iterator[tuple[str, type]]:
    """Dotted names below `name` that take numbers; `[0]` stands for an item."""
    for option in options_of(hint):
        if option in (int, float):
            yield name, option
        elif dataclasses.is_dataclass(option):
            for field, inner in typing.get_type_hints(option).items():
                yield from numbers(f"{name}.{field}", inner)
        elif typing.get_origin(option) in (list, tuple):
            yield from numbers(f"{name}.[0]", typing.get_args(option)[0])


def parameters(name: str, function: Callable[..., Any]) -> Iterator[tuple[str, type]]:
    for parameter, hint in typing.get_type_hints(function).items():
        if parameter != "return":
            yield from numbers(f"{name}.{parameter}" if name else parameter, hint)


SECTIONS = {"model": StageSettings, "data": PackedDataModule, "checkpoint": Saving, "previews": Previews}
KEYS = dict(
    pair
    for name, kind in {**SECTIONS, "monitoring": Monitoring}.items()
    for pair in parameters(name, kind.__init__)
    if not pair[0].startswith(("data.val.", "data.test.", "data.predict."))  # as data.train
)


def replaced(node: Any, path: list[str], value: Any) -> Any:
    """A copy of parsed settings with another value at `path`."""
    if not path:
        return value
    if path[0].startswith("["):
        return type(node)([replaced(node[0], path[1:], value), *node[1:]])
    assert path[0] in vars(node), f"{path[0]} is not among {sorted(vars(node))}"
    return Namespace(**{**vars(node), path[0]: replaced(vars(node)[path[0]], path[1:], value)})


@pytest.fixture(scope="module")
def settings() -> Any:
    return parse(["fit", "--config", RECIPE, *EVERYTHING]).settings


@pytest.fixture(scope="module")
def rebalanced() -> Any:
    """Settings with what does not go together with a bridge in sampling."""
    return parse(["fit", "--config", RECIPE, "--model.init_args.sampling.attention_rebalancing={}"]).settings


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_a_recipe_refuse_numbers_out_of_range(settings: Any, rebalanced: Any, key: str) -> None:
    settings = rebalanced if ".attention_rebalancing." in key else settings
    path = ["model", "init_args", *key.split(".")[1:]] if key.startswith("model.") else key.split(".")
    name = next(part for part in reversed(path) if not part.startswith("["))
    for odd in WHOLES if KEYS[key] is int else FLOATS:
        if odd == -1 and key in MAY_BE_NEGATIVE:
            continue
        with pytest.raises(UserError) as caught:
            check_values(replaced(settings, path, odd))
        assert name in str(caught.value), caught.value


def test_the_sweep_of_recipes_starts_from_valid_settings_and_knows_many_keys(settings: Any) -> None:
    check_values(settings)
    assert {"model.optimizer.lr", "data.packing.vae_resize.max_size", "model.optimizer.betas.[0]"} <= KEYS.keys()
    assert len(KEYS) > 60


TRAINER = ("num_nodes", "max_steps", "min_steps", "limit_val_batches", "overfit_batches", "num_sanity_val_steps")
TRAINER += ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val", "fast_dev_run")


@pytest.mark.parametrize("name", TRAINER)
def test_the_trainers_numbers_are_refused_out_of_range(settings: Any, name: str) -> None:
    for odd in (math.nan, math.inf, -math.inf, -2):
        with pytest.raises(UserError, match=rf"trainer\.{name}"):
            check_trainer({**vars(settings.trainer), name: odd})


@pytest.mark.parametrize("text", ["-1", "1e400", "00:00:00", "00:00:00:-1", "", "soon"])
def test_a_time_limit_that_is_no_duration_is_refused(settings: Any, text: str) -> None:
    with pytest.raises(UserError, match=r"trainer\.max_time"):
        check_trainer({**vars(settings.trainer), "max_time": text})


@pytest.mark.parametrize("key", ["model.init_args.optimizer.lr", "data.max_skipped_fraction", "monitoring.peak_tflops"])
@pytest.mark.parametrize("verb", ["fit", "estimate"])
def test_the_command_line_says_so_in_one_line(verb: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--config", RECIPE, f"--{key}=.nan"]) == 2
    assert_one_line(capsys, key.rpartition(".")[2])


def test_a_number_of_too_many_digits_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for digits in (400, 5000):
        assert main(["fit", "--config", RECIPE, f"--data.max_skipped_fraction={'9' * digits}"]) == 2
        assert_one_line(capsys, "data.max_skipped_fraction")


def test_a_later_step_of_a_chain_is_checked_before_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Not after the days that the first one takes."""
    monkeypatch.setattr(SconeCLI, "fit", lambda *_, **__: pytest.fail("a step was started"))
    data = tmp_path / "data"
    data.mkdir()
    for model, name in (
        ({"optimizer": {"lr": -1.0}}, "model.optimizer.lr"),
        ({"mask_sampling": True, "bridge": None, "alignment": {"weight": 0.0}}, "model.mask_sampling"),
        ({"bridge": {"last_masked_layer": 99}}, "model.bridge.last_masked_layer"),
    ):
        chain = [{"name": "one"}, {"name": "two", "model": {"init_args": model}}]
        status = main(
            [
                *("fit", "--config", RECIPE, "--output_dir", f"{tmp_path}/run", "--chain", json.dumps(chain)),
                *("--model.init_args.init_from", f"{ROOT}/experiments/mini/base_weights"),
                *(f"--data.train=[{{path: {data}}}]", f"--data.val=[{{path: {data}}}]"),
            ]
        )
        assert status == 2
        assert_one_line(capsys, name)


def test_chain_steps_override_what_is_checked() -> None:
    """A section that steps may override must be among those that `check_stage` and `check_values` read."""
    fields = {field.name for field in dataclasses.fields(ChainStep)} - {"name"}
    assert fields == {"model", "data", "trainer"}


# ---------------------------------------------------------------------- other verbs
COMMANDS = {
    (name, *words): command.load()
    for name, verb in VERBS.items()
    for words, command in [((), verb.command), *(((one,), command) for one, command in verb.commands.items())]
    if command is not None and name not in ("estimate", "export", "latents", "parity")
}
GIVEN = {"benchmark": "sconeeval", "scores": "nowhere", "names": "x", "study": "figure11"}
OPTIONS = [
    (command, name.removeprefix("settings.").removeprefix("selection."), kind)  # options of the command itself
    for command, function in COMMANDS.items()
    for name, kind in parameters("", function)
    if not name.startswith("settings.bridge")
    if "[" not in name and not name.startswith("packing.") and name != "runner"
]


def required(command: tuple[str, ...]) -> list[str]:
    """Arguments without a default, as paths to nothing."""
    typed = []
    parameters = dict(inspect.signature(COMMANDS[command]).parameters)
    for name in {"settings", "selection"} & parameters.keys():
        fields = inspect.signature(typing.get_type_hints(COMMANDS[command])[parameters.pop(name).name]).parameters
        parameters = {**fields, **parameters}
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            value = GIVEN.get(name, "nowhere")
            typed += [value] if command[0] in ("shards", "study") else [f"--{name}", value]
    return typed


def assert_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(("command", "name", "kind"), OPTIONS, ids=lambda value: str(value))
def test_options_of_every_verb_refuse_numbers_out_of_range(
    command: tuple[str, ...], name: str, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    for odd in ("-1", "1" + "0" * 30) if kind is int else (".nan", "1e400", "-.inf"):
        assert main([*command, *required(command), f"--{name}={odd}"]) == 2
        assert_one_line(capsys, name.rpartition(".")[2])


def test_the_sweep_of_verbs_knows_many_options() -> None:
    known = {(command, name) for command, name, _ in OPTIONS}
    assert {(("generate",), "timestep_shift"), (("judge",), "judge.timeout")} <= known
    assert len(known) > 50


@pytest.mark.parametrize("value", ["-1", "0", "nan", "1e400", "2"])
def test_estimates_refuse_a_share_of_the_peak_out_of_range(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", RECIPE, f"--mfu={value}"]) == 2
    assert_one_line(capsys, "mfu")
