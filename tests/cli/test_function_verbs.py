"""One command-line layer: how a typed function is called, and help without importing torch."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from running import ROOT

from scone_pl import __version__, deprecated
from scone_pl.cli import help as short
from scone_pl.cli.command import Command, run_command
from scone_pl.cli.verbs import VERBS, run
from scone_pl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Settings."""

    steps: int = 49
    """Number of steps."""
    mode: Literal["a", "b"] = "a"
    """How."""


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Settings."""

    size: float = 1.0
    """Of it."""


CALLS: list[dict[str, object]] = []


def example(
    source: Path,
    image: list[str] | None = None,
    quick: bool = False,
    number: int = -1,
    settings: Flat = Flat(),
    nested: Nested = Nested(),
    recipe: list[str] | None = None,
    extra: list[str] | None = None,
) -> int | None:
    """Do something. More about it.

    It has a second paragraph.

    Args:
        source: Where from; required.
        image: An image, repeatable.
        quick: Fewer steps.
        number: Any number.
        settings: How.
        nested: Sizes.
        recipe: Other options.
        extra: What stands behind --.
    """
    CALLS.append(dict(locals()))
    return 3 if quick else None


COMMAND = Command(f"{__name__}:example", positional=("source",), flat="settings", behind="extra")
PASSING = Command(f"{__name__}:example", flat="settings", rest="recipe", behind="extra")


def call(*args: str, command: Command = COMMAND) -> dict[str, object]:
    assert run_command(command, "example", args) == (3 if "--quick" in args else 0)
    return CALLS.pop()


def test_defaults_and_every_way_to_type_an_option() -> None:
    given = call("x")
    assert given == {
        "source": Path("x"),
        "image": None,
        "quick": False,
        "number": -1,
        "settings": Flat(),
        "nested": Nested(),
        "recipe": None,
        "extra": [],
    }
    assert call("--source", "x") == call("--source=x") == given
    assert call("x", "--quick", "--number", "-5", "--steps=3", "--nested.size", "2") | {"quick": False} == {
        **given,
        "number": -5,
        "settings": Flat(steps=3),
        "nested": Nested(size=2.0),
    }
    assert call("x", "--quick=false", "--mode", "b")["settings"] == Flat(mode="b")
    assert call("x", "--", "--any", "thing")["extra"] == ["--any", "thing"]


@pytest.mark.parametrize(
    ("typed", "images"),
    [
        (["--image", "a"], ["a"]),
        (["--image", "a", "--quick=false", "--image=b"], ["a", "b"]),
        (["--image", "a", "b,c"], ["a", "b,c"]),
        (["--image", '["a", "b"]'], ["a", "b"]),
        (["--image", "[a, b]"], ["a", "b"]),
        (["--image", "1"], ["1"]),
        (["--image=a=b"], ["a=b"]),
    ],
    ids=str,
)
def test_lists(typed: list[str], images: list[str]) -> None:
    assert call("--source", "x", *typed, command=PASSING)["image"] == images


def test_a_configuration_file_and_what_is_typed(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source: y\nimage: [a]\nsteps: 7\nquick: false\nnested: {size: 3}\n")
    given = call("--config", str(file), "--steps", "8")
    assert (given["source"], given["image"], given["settings"]) == (Path("y"), ["a"], Flat(steps=8))
    assert given["nested"] == Nested(size=3.0)


def test_other_options_are_passed_on() -> None:
    typed = ["--config", "a.yaml", "--number", "2", "--trainer.max_steps", "3", "--data.train+={path: x}", "--fast"]
    given = call("--source", "x", *typed, command=PASSING)
    assert given["number"] == 2
    assert given["recipe"] == ["--config", "a.yaml", "--trainer.max_steps", "3", "--data.train+={path: x}", "--fast"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "source"),
        (["x", "y"], "unrecognized arguments: y"),
        (["x", "--step", "3"], "unrecognized arguments: --step 3; did you mean --steps?"),
        (["x", "--steps", "many"], "steps: Expected an int"),
        (["x", "--steps"], "--steps"),
        (["x", "--image", ""], "--image: one of its values is empty"),
        (["x", "--quick", "yes"], "unrecognized arguments: yes"),
        (["x", "--mode", "c"], "mode"),
        (["x", "--nested.siz", "1"], "--nested.siz"),
        (["x", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(typed: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        run_command(COMMAND, "example", typed)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="nothing is passed on"):
        run_command(Command(f"{__name__}:example", flat="settings"), "example", ["--source", "x", "--", "y"])


def test_deprecated_options_and_commands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deprecated, "OPTIONS", {"example": {"amount": "number"}})
    monkeypatch.setattr(deprecated, "_warned", set())
    with caplog.at_level("WARNING", "scone_pl"):
        assert call("x", "--amount", "4")["number"] == 4
        assert run(["mini", "picture", "--help"]) == 0
    assert "mini contact_sheet" in capsys.readouterr().out
    assert [record.getMessage() for record in caplog.records] == [
        "--amount is deprecated; write --number",
        "mini picture is deprecated; write mini contact_sheet",
    ]
    for old, new in deprecated.REMOVED.items():
        with pytest.raises(UserError, match=f"{old} is now: python -m scone_pl {new}"):
            run(old.split())


def commands() -> dict[str, Command]:
    """Every command that is a function, by how it is typed."""
    single = {name: verb.command for name, verb in VERBS.items() if verb.command is not None}
    return single | {f"{name} {c}": command for name, verb in VERBS.items() for c, command in verb.commands.items()}


def test_new_names_of_deprecated_options_exist() -> None:
    for verb, names in deprecated.OPTIONS.items():
        text = short.short_help(commands()[verb], verb)
        for old, new in names.items():
            assert re.search(rf"--{new}\b", text), new
            assert not re.search(rf"--{old}\b", text), old
    assert set(deprecated.COMMANDS.values()) <= set(commands())


PROGRAM = """
import sys
from scone_pl.cli.verbs import VERBS, run
for name, verb in VERBS.items():
    for command in ["", *verb.commands]:
        print(f"=== {name} {command}".rstrip())
        assert run([name, *filter(None, [command]), "--help"]) == 0
print("=== imported", *({"torch", "lightning", "jsonargparse", "numpy", "PIL"} & set(sys.modules)))
"""


def test_help_of_every_verb_fits_a_screen_and_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = dict(page.split("\n", 1) for page in done.stdout.split("=== ")[1:])
    assert pages.pop("imported") == ""
    assert set(pages) == set(commands()) | set(VERBS)
    for name, page in pages.items():
        assert page.startswith(f"usage: python -m scone_pl {name}")
        assert len(page.splitlines()) <= 45
        assert all(len(line) <= 120 for line in page.splitlines())
    fit = pages["fit"].splitlines()
    assert [line.split()[0] for line in fit[5:8]] == ["Composition", "BridgeFormation", "BridgeGuidance"]
    for name in commands():
        lines = [line.split() for line in pages[name].splitlines() if line.startswith("  --")]
        assert all(len(words) > 2 for words in lines), f"{name}: an option without a description"
        prose = [
            re.split(r"\s{2,}", line.strip(), maxsplit=1)[1] for line in pages[name].splitlines() if "  --" in line
        ]
        small = [text for text in prose if re.match(r"[a-z'-]+ (?!=|or\b|->|\()", text)]
        assert not small, f"{name}: descriptions begin with a capital"
        assert not re.search(r"\[(\w+\(|[^]]* / )", pages[name]), f"{name}: a default as source code"


def test_short_help_lists_the_options_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(COMMAND, "example", ["--help", "all"]) == 0
    whole = set(re.findall(r"^  --([a-z_]+)", capsys.readouterr().out, re.MULTILINE))
    assert {"source", "image", "quick", "number", "recipe", "steps", "mode", "config"} <= whole


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--version"], ["fit", "--version"], ["shards", "--version"]):
        assert run(args) == 0
    assert capsys.readouterr().out == 3 * f"scone_pl {__version__}\n"


def test_sections_of_a_recipe_are_those_of_the_parser() -> None:
    from scone_pl.cli.stages import stages

    settings = stages(["fit", "--config", str(ROOT / "experiments/mini/stage1.yaml"), "--chain", "null"])[0][1]
    assert set(short.RECIPE_KEYS) <= set(vars(settings))


def test_only_one_place_assigns_argv() -> None:
    found = [
        (file.relative_to(ROOT).as_posix(), line.strip())
        for file in sorted((ROOT / "scone_pl").rglob("*.py"))
        for line in file.read_text().splitlines()
        if re.search(r"sys\.argv(\[[^\]]*\])?\s*=[^=]", line)
    ]
    assert [file for file, _ in found] == ["scone_pl/cli/stages.py"]
