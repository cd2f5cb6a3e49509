"""Imports between packages point down only, as docs/architecture.md says; what a type checker ignores has a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import scone_pl

PACKAGE = Path(scone_pl.__file__).parent
ORDER = (
    *("__main__", "cli", "app", "study", "worlds", "parity", "estimate", "evaluation", "analysis", "training"),
    *("sampling", "construct", "vlm", "checkpoints", "data", "model", "leaves"),
)
"""Top to bottom. Files of the package's root that are not named here are leaves."""


def part(module: str) -> str:
    """The package of `ORDER` that a module of ours belongs to."""
    name = [*module.split("."), ""][1]
    return name if name in ORDER else "leaves"


def imported(file: Path) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("scone_pl."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "scone_pl":
            names = [f"scone_pl.{alias.name}" for alias in node.names] if node.module == "scone_pl" else [node.module]
            yield from names


def test_imports_point_down() -> None:
    upwards = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        own = part(".".join(("scone_pl", *name.with_suffix("").parts)))
        for module in imported(file):
            other = part(module)
            if ORDER.index(other) < ORDER.index(own):
                upwards.add((name.as_posix(), other))
    assert not upwards


def test_every_package_is_in_the_order_and_in_the_documentation() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(ORDER)
    text = (PACKAGE.parent / "docs/architecture.md").read_text()
    assert not [package for package in packages if f"`{package}/`" not in text]


def test_what_the_type_checker_is_to_ignore_has_a_reason() -> None:
    bare = re.compile(r"# type: ignore(\[[a-z, -]+\])?\s*$")
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tests").rglob("*.py")]
    lines = [(file, line) for file in files for line in file.read_text().splitlines()]
    assert [f"{file.name}: {line.strip()}" for file, line in lines if bare.search(line)] == []
