"""A command line of `fit`, `validate`, `test` or `predict` as the stages it stands for, checked and run in order."""

from __future__ import annotations

import sys
from typing import Any

from scone_pl.checkpoints.hub import hub_id
from scone_pl.cli.command import help_wanted
from scone_pl.cli.lightning import SconeCLI, parse
from scone_pl.errors import UserError
from scone_pl.training.chain import ChainStep, check_names, needs_own_process, plan, run_in_own_process
from scone_pl.training.chain_checks import check_data, check_seed, check_stale
from scone_pl.training.ckpt_path import Step, check_chain, check_ends, evaluated, for_fit
from scone_pl.training.start import check_start
from scone_pl.training.values import check_stage


def main(args: list[str]) -> int:
    """Runs `fit`, `validate`, `test` or `predict`; the exit status."""
    if help_wanted(args) or any(a.startswith(("--print_config", "--model.help", "--data.help")) for a in args):
        SconeCLI([args[0], "--help"] if help_wanted(args) else args, until="parse")
        return 0
    parsed: dict[tuple[str, ...], SconeCLI] = {}
    planned = commands(args, parsed)
    apart = len(planned) > 1 and needs_own_process(next(iter(parsed.values())).settings.trainer.devices)
    for command in planned:
        if apart:
            if status := run_in_own_process(command):
                return status
        else:
            sys.argv[1:] = command  # Lightning's launcher reads there what it starts the other ranks with
            if status := _take(parsed, command).run():
                return status
    return 0


def _take(parsed: dict[tuple[str, ...], SconeCLI], command: list[str]) -> SconeCLI:
    """A parsed command line, out of `parsed` if it is there: what running it builds should not outlive it."""
    return parsed.pop(tuple(command), None) or SconeCLI(command, until="parse")


def commands(args: list[str], parsed: dict[tuple[str, ...], SconeCLI] | None = None) -> list[list[str]]:
    """The command lines of single stages that `args` stands for, each already parsed once and put into `parsed`.

    A wrong key in the last step of a chain must not show after days. Verbs other than `fit` run on one stage's state,
    see `ckpt_path.evaluated`.
    """
    check_seed(args)
    steps = [step for _, step in _named_steps(args, parsed)]
    for step in steps:
        step.folder.check_outputs()
    if hub_id(steps[0].init_from) is not None:
        args = [*args, "--model.init_args.init_from", str(check_start(steps[0].init_from))]
        steps = [step for _, step in _named_steps(args, parsed)]
    if args[0] != "fit":
        _check_adapters(steps[-1].settings)
        return [evaluated(steps)]
    if any(step.settings.model.init_args.get("adapters") for step in steps):
        raise UserError("model.adapters are merged for predict, validate and test; leave them out of fit")
    check_start(steps[0].init_from)
    settings = steps[0].settings
    if len(steps) > 1:
        check_data([step.settings for step in steps])
        for step in steps[1:]:
            check_stage(step.settings, steps[0].init_from)
    if settings.trainer.fast_dev_run:  # no step leaves weights, so all start from the same
        return [[*step.command, "--model.init_args.init_from", steps[0].init_from] for step in steps]
    check_ends(steps)
    check_stale(steps)
    if len(steps) == 1:
        given = for_fit(steps[0])
        command = steps[0].command  # of a chain of one stage: with that stage's settings
        return [[*command, "--ckpt_path", str(given or "null")]] if settings.ckpt_path else [command]
    if settings.ckpt_path:
        check_chain(str(settings.ckpt_path), steps)
        return [[*step.command, "--ckpt_path", "null"] for step in steps]
    return [step.command for step in steps]


def _check_adapters(settings: Any) -> None:
    if settings.model.init_args.get("adapters") and settings.ckpt_path:
        raise UserError(
            "model.adapters are merged into weights, not into a snapshot; export it first, or leave one out"
        )


def stages(args: list[str]) -> list[tuple[str, Any]]:
    """Name in the chain and settings of each stage of a command line; needs neither weights nor data."""
    return [(name, step.settings) for name, step in _named_steps(args)]


def _named_steps(args: list[str], parsed: dict[tuple[str, ...], SconeCLI] | None = None) -> list[tuple[str, Step]]:
    """Name in the chain and command line of each stage: one, or those of its chain."""
    parsed = {} if parsed is None else parsed
    cli = parse(args)
    settings = cli.settings
    if not settings.chain:
        parsed[tuple(args)] = cli
        return [("", Step(args, settings))]
    chain = [ChainStep(**step.as_dict()) for step in settings.chain]
    check_names(chain)
    planned = plan(args, chain, settings.model.init_args.init_from, settings.output_dir)
    parsed.update((tuple(line), parse(line)) for line in planned)
    return [(one.name, Step(line, parsed[tuple(line)].settings)) for one, line in zip(chain, planned, strict=True)]
