"""Every setting that a recipe or command line can have is read by the code: none is accepted and then has no effect."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from attribute_reads import AttributeReads

import scone_pl
from scone_pl.cli.verbs import VERBS
from scone_pl.data.datamodule import PackedDataModule
from scone_pl.training.callbacks import Previews
from scone_pl.training.chain import ChainStep
from scone_pl.training.monitoring import Monitoring
from scone_pl.training.saving import Saving
from scone_pl.training.settings import StageSettings

PACKAGE = Path(scone_pl.__file__).parent
SECTIONS = (PackedDataModule, Saving, Previews, Monitoring)
READ_BY_NAME = {
    "FieldNames": "`find(row, role)` looks fields up by their names, see `test_all_field_names_are_looked_up`",
    "ChainStep": "becomes arguments of a command line as a whole (training/chain.py)",
}


def functions() -> list[Callable[..., Any]]:
    """Of all verbs that are functions."""
    commands = [c for verb in VERBS.values() for c in (verb.command, *verb.commands.values()) if c is not None]
    return [command.load() for command in commands]


def dataclasses_in(hint: Any) -> Iterator[type]:
    """All within a type, and within the types of their fields."""
    for part in get_args(hint):
        yield from dataclasses_in(part)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
        for inner in get_type_hints(hint).values():
            yield from dataclasses_in(inner)


def settings() -> dict[str, type]:
    """All dataclasses whose fields users set, by name."""
    hints = [StageSettings, ChainStep]
    for taker in (*functions(), *(section.__init__ for section in SECTIONS)):
        hints += get_type_hints(taker).values()
    return {kind.__name__: kind for hint in hints for kind in dataclasses_in(hint)}


SETTINGS = settings()


@pytest.fixture(scope="module")
def reads() -> AttributeReads:
    return AttributeReads(PACKAGE)


def is_read(reads: AttributeReads, kind: type, name: str) -> bool:
    """Outside of the class that has the field, or in a method of it which in turn is used."""
    owners = {owner.__name__ for owner in kind.__mro__}
    readers = {reader for owner in owners for reader in reads.reads[owner, name]}
    if any(owner not in owners for owner, _ in readers):
        return True
    methods = {method for _, method in readers} - {"__init__", "__post_init__", name}
    return any(method in reads.names_read or is_read(reads, kind, method) for method in methods)


def test_the_settings_are_found() -> None:
    expected = "BridgeConfig ConvertConfig JudgeOptions OptimizerConfig PackingConfig SamplingConfig ShardingConfig"
    assert SETTINGS.keys() >= {*expected.split(), "EMAConfig", "LoRAConfig", "Source", "StorageConfig", "WorldConfig"}


@pytest.mark.parametrize("kind", SETTINGS.values(), ids=SETTINGS)
def test_each_field_is_read(kind: type, reads: AttributeReads) -> None:
    if kind.__name__ in READ_BY_NAME:
        return
    assert [field.name for field in dataclasses.fields(kind) if not is_read(reads, kind, field.name)] == []


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_each_argument_of_a_section_is_read(section: type, reads: AttributeReads) -> None:
    source = ast.parse(textwrap.dedent(inspect.getsource(section.__init__)))
    used = {node.id for node in ast.walk(source) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    copied = {  # self.x = x: whether that is read elsewhere counts
        node.value.id
        for node in ast.walk(source)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.targets[0].attr == node.value.id
    }
    names = inspect.signature(section.__init__).parameters.keys() - {"self"}
    assert [name for name in names if name not in used] == []
    owners = {owner.__name__ for owner in section.__mro__}  # whose other methods Lightning calls
    read = {name for (owner, name), where in reads.reads.items() if owner in owners and where - {(owner, "__init__")}}
    assert copied - read == set()


@pytest.mark.parametrize("function", functions(), ids=lambda function: f"{function.__module__}.{function.__name__}")
def test_each_argument_of_a_verb_is_read(function: Callable[..., Any]) -> None:
    source = ast.parse(textwrap.dedent(inspect.getsource(function)))
    used = {node.id for node in ast.walk(source) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert inspect.signature(function).parameters.keys() - used == set()


def test_all_field_names_are_looked_up() -> None:
    calls = [node for file in (PACKAGE / "data").glob("*.py") for node in ast.walk(ast.parse(file.read_text()))]
    roles = {
        argument.value
        for call in calls
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute | ast.Name)
        and getattr(call.func, "attr", getattr(call.func, "id", "")) in ("find", "_text")
        for argument in call.args
        if isinstance(argument, ast.Constant)
    }
    assert {field.name for field in dataclasses.fields(SETTINGS["FieldNames"])} <= roles


def test_a_field_that_nothing_reads_is_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        textwrap.dedent(
            """
            class Config:
                used: int = 1
                unused: int = 2
                checked: int = 3
                halved: int = 4
                lost: int = 5

                def __post_init__(self):
                    assert self.checked > 0

                @property
                def half(self):
                    return self.halved / 2

                @property
                def unasked(self):
                    return self.lost

            class Other:
                unused: int = 2

            class User:
                def __init__(self, config: Config | None, other: Other) -> None:
                    self.config = config or Config()
                    self.other = other

                def use(self) -> float:
                    return self.config.used + self.config.half + self.other.unused
            """
        )
    )
    reads = AttributeReads(tmp_path)
    kind = dataclasses.make_dataclass("Config", ["used", "unused", "checked", "halved", "lost"])
    unread = [field.name for field in dataclasses.fields(kind) if not is_read(reads, kind, field.name)]
    assert unread == ["unused", "checked", "lost"]
