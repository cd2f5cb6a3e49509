"""What `make docs` adds to mkdocs: the README as first page, the pages of results, and formulas as MathML."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Lists the pages of results, which are generated, behind their front page."""
    pages = sorted(f"evidence/{file.name}" for file in (Path(config.docs_dir) / "evidence").glob("*.md"))
    config.nav = [{"Results": ["evidence.md", *pages]} if "Results" in entry else entry for entry in config.nav]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Adds README.md as index.md, its links seen from docs/."""
    text = (Path(config.config_file_path).parent / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the README lead to the first page."""
    return markdown.replace("](../README.md", "](index.md")


def on_page_content(content: str, **_: Any) -> str:
    """LaTeX, as pymdownx.arithmatex leaves it, becomes MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    return convert(html.unescape(match[2]), display="block" if match[1] == "div" else "inline")
