"""Parses command lines as the programs themselves would, without running them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
from running import ROOT
from torch.distributed.run import get_args_parser

from scone_pl.__main__ import main
from scone_pl.cli import lightning
from scone_pl.cli.verbs import VERBS

LIGHTNING_VERBS = ("fit", "validate", "test", "predict")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
_INSTANTIATE = jsonargparse.ArgumentParser.instantiate_classes
_SHOWS = ("--help", "-h", "--print_config")


class _Parsed(BaseException):
    """Raised once a command line has been accepted."""


def parse_line(words: list[str]) -> None:
    """Asserts that a command line of the documentation or the Makefile is right: verb, options, values and files."""
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    program, *args = words
    kind = KINDS.get(Path(program).name)
    assert kind is not None, f"no such kind of command: {program}"
    kind(args)


def _python(args: list[str]) -> None:
    if args[0] == "-m":
        if args[1] == "scone_pl":
            parse_verb(args[2:])
        elif args[1] != "pip":
            _script(lambda: runpy.run_module(args[1], run_name="__main__", alter_sys=True), args[1:])
    else:
        file = ROOT / args[0]
        assert file.is_file()
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(file.parent)  # as Python does for a script
            _script(lambda: runpy.run_path(str(file), run_name="__main__"), args)


def parse_verb(args: list[str]) -> None:
    """Parses what follows `python -m scone_pl`."""
    if args[0] in ("--help", "-h"):
        return
    assert args[0] in VERBS
    for before, word in itertools.pairwise(args):
        if before == "--config":
            assert Path(word).is_file(), f"{word}: no such file"
    _parse_verb(tuple(args), Path.cwd())


@cache
def _parse_verb(args: tuple[str, ...], folder: Path) -> None:
    with _nothing_runs(["scone_pl", *args]) as patch:
        if args[0] in LIGHTNING_VERBS and not any(word.startswith(_SHOWS) for word in args):
            lightning.parse(list(args))
            return
        if args[0] in ("estimate", "latents") and "--judge" not in args:
            patch.setattr(jsonargparse.ArgumentParser, "instantiate_classes", _INSTANTIATE)
            patch.setattr(f"scone_pl.cli.{args[0]}.stages", _recipe_parsed)
        with contextlib.suppress(SystemExit) if any(w.startswith(_SHOWS) for w in args) else pytest.raises(_Parsed):
            assert main(list(args)) == 0


def _recipe_parsed(args: list[str], *_: Any) -> None:
    lightning.parse(args)
    raise _Parsed


def _script(run: Callable[[], Any], words: list[str]) -> None:
    """A program with argparse."""
    with _nothing_runs(words) as patch:
        parse = argparse.ArgumentParser.parse_args

        def parsed(self: Any, *given: Any, **more: Any) -> None:
            parse(self, *given, **more)
            raise _Parsed

        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        with pytest.raises(_Parsed):
            run()


@contextlib.contextmanager
def _nothing_runs(argv: list[str]) -> Iterator[pytest.MonkeyPatch]:
    """Verbs end where jsonargparse would build what their arguments describe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(argv))
        patch.setattr(jsonargparse.ArgumentParser, "instantiate_classes", _raise_parsed)
        yield patch


def _raise_parsed(*_: Any, **__: Any) -> None:
    raise _Parsed


def _torchrun(args: list[str]) -> None:
    given = get_args_parser().parse_args(args)
    assert given.module
    _python(["-m", given.training_script, *given.training_script_args])


def _make(args: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for word in args:
        name, is_assignment, _ = word.partition("=")
        if is_assignment:
            assert f"$({name})" in text or f"$({name}:" in text, f"the Makefile has no variable {name}"
        else:
            assert re.search(rf"^{re.escape(name)}:.*## ", text, re.MULTILINE), f"the Makefile has no target {name}"


def makefile_commands(target: str, *assignments: str) -> list[str]:
    """The command lines that `make TARGET` would run."""
    result = subprocess.run(
        ["make", "--dry-run", "--always-make", target, *assignments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.replace("\\\n", " ").splitlines()


def _srun(args: list[str]) -> None:
    parse_line(args)


def _nothing(args: list[str]) -> None:
    """A program that is not ours."""


KINDS: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "python3": _python,
    "make": _make,
    "torchrun": _torchrun,
    "srun": _srun,
    **dict.fromkeys(("pip", "source", "export", "tensorboard"), _nothing),
}
"""What the documentation may call, by the program's name."""
