"""Docstrings are Markdown on the API pages: folder trees and code are in fences there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from running import ROOT


def misread(docstring: str) -> Iterator[str]:
    """Lines that Markdown would run together with their neighbours, or take for HTML."""
    for line in re.sub(r"^```.*?^```", "", docstring, flags=re.MULTILINE | re.DOTALL).splitlines():
        words = re.sub(r"`[^`]*`", "code", line)
        is_table = words.lstrip().startswith("|")
        if not line.startswith("    ") and not is_table and re.search(r"<[a-z_]+>|\S {3,}\S|^\w+ = \w+[.(]", words):
            yield line


def test_literal_text_is_marked() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in sorted((ROOT / "scone_pl").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for line in misread(ast.get_docstring(node) or "")
    ]
    assert found == []
