"""No message advises deleting what somebody has made: another output, an option, or moving it aside does as well."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import scone_pl

DESTRUCTIVE = re.compile(r"\b(delete|remove|erase|overwrite|rm|unlink|truncate)\b", re.IGNORECASE)


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string that is not a docstring, with {} for the values in it."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts:
            yield node.value


def test_no_message_advises_deleting() -> None:
    found = [
        f"{file.name}: {text}"
        for file in Path(scone_pl.__file__).parent.rglob("*.py")
        for text in texts(ast.parse(file.read_text()))
        if " " in text and DESTRUCTIVE.search(text)
    ]
    assert found == []


def test_such_advice_would_be_found() -> None:
    text = '"""remove"""\nraise UserError(f"{file}: damaged; delete it " "to go on")\nrun("rm -r out")\nx = "remove"'
    assert [bool(DESTRUCTIVE.search(t)) for t in texts(ast.parse(text))] == [True, True, True]
