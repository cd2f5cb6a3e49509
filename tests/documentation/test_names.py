"""Files, options, keys and tests that the documentation names exist."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from functools import cache
from typing import Any

import pytest
import yaml
from documents import DOCUMENTS, inline_code, links
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.verbs import VERBS

CODE = inline_code()
_FILE = re.compile(r"(?:scone_pl|tests|benchmarks|experiments|docs|data_shards/tiny)/[\w./-]*\w|[\w/]+/\w+\.py")
_OPTION = re.compile(r"--[a-z][\w.-]*")
_KEY = re.compile(r"(?:model|data|trainer|checkpoint|previews|monitoring|bridge|sharding|ema|lora)(?:\.\w+)+(?=$|[: ])")
_SUFFIX = re.compile(r"\.(?:py|jsonl?|safetensors)$")
_NAME = re.compile(r"scone_pl(?:\.\w+)+")


def test_links_lead_somewhere() -> None:
    missing = [
        f"{file.relative_to(ROOT)}: {target}"
        for file, target in links()
        if (path := target.partition("#")[0]) and not (file.parent / path).exists()
    ]
    assert missing == []


def test_files_exist() -> None:
    def exists(name: str) -> bool:
        return any((base / name).exists() for base in (ROOT, ROOT / "scone_pl")) or bool(list(ROOT.glob(name)))

    named = [(f, code) for f, code in CODE if _FILE.fullmatch(code.rstrip("/")) and "NAME" not in code]
    assert [(file, name) for file, name in named if not exists(name)] == []
    assert len(named) > 50


def test_classes_and_bare_file_names_exist() -> None:
    files = [file for folder in ("scone_pl", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    files += ROOT.glob("*.py")
    source = "\n".join(file.read_text() for file in files)
    classes = {(f, c) for f, c in CODE if re.fullmatch(r"(?:[A-Z][a-z0-9]+){2,}|[A-Z]\w*[a-z][A-Z]\w*", c)}
    assert {(file, name) for file, name in classes if not re.search(rf"\b{name}\b", source)} == set()
    names = {(f, c) for f, c in CODE if re.fullmatch(r"\w+\.py", c)}
    assert {(file, name) for file, name in names if name not in {file.name for file in files}} == set()
    assert len(classes) > 15


def test_tests_exist() -> None:
    source = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = {code for _, code in CODE if re.fullmatch(r"test_\w+", code)}
    assert {name for name in named if f"def {name}(" not in source} == set()


def test_options_exist() -> None:
    known = _options()
    named = {(option.removesuffix("ROLE"), file) for file, code in CODE for option in _OPTION.findall(code)}

    def exists(option: str) -> bool:
        return (
            option in known or _is_key(option[2:]) or (option[-1] == "." and any(o.startswith(option) for o in known))
        )

    assert {(option, file) for option, file in named if not exists(option)} == set()
    assert len(named) > 30


def test_keys_exist() -> None:
    named = {(file, match[0]) for file, code in CODE if (match := _KEY.match(code)) and not _SUFFIX.search(match[0])}
    assert {(file, key) for file, key in named if not _is_key(key)} == set()
    assert len(named) > 20


def test_python_names_exist() -> None:
    for name in {match[0] for _, code in CODE if (match := _NAME.match(code))}:
        assert _resolves(name), name


def test_messages_exist() -> None:
    source = "\n".join(file.read_text() for file in (ROOT / "scone_pl").rglob("*.py"))
    table = (ROOT / "docs/errors.md").read_text().partition("## Frequent messages")[2].partition("## ")[0]
    messages = re.findall(r"^\| (?:[^`|]* )?`([^`]+)`", table, re.MULTILINE)
    parts = [part.strip(" ,;:") for message in messages for part in message.split("...")]
    assert [part for part in parts if part not in source] == []
    assert len(messages) > 10


def test_every_package_has_an_api_page() -> None:
    packages = {path.parent.name for path in (ROOT / "scone_pl").glob("*/__init__.py")} - {"cli"}
    assert packages == {page.stem for page in (ROOT / "docs/api").glob("*.md")} - {"index"}
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in DOCUMENTS if (ROOT / "docs") in file.parents}
    # docs/hooks.py adds the pages of results, which are generated.
    assert {page for page in pages if page not in navigation and not page.startswith("evidence/")} == set()


@cache
def _options() -> frozenset[str]:
    """Options of all verbs, as their help shows them; other verbs of Lightning have those of `fit`."""
    texts = []
    single = [
        [name] for name, verb in VERBS.items() if not verb.commands and name not in ("validate", "test", "predict")
    ]
    for words in [*single, *([name, command] for name, verb in VERBS.items() for command in verb.commands)]:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*words, "--help", "all"])
        texts.append(shown.getvalue())
    sources = [file.read_text() for file in (ROOT / "benchmarks").rglob("*.py")]
    return frozenset(_OPTION.findall("\n".join([*texts, *sources])))


@cache
def _recipe() -> dict[str, Any]:
    """A complete configuration of `fit`."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        args = ["fit", "--config", "experiments/mini/stage2.yaml", "--print_config"]
        patch.setattr("sys.argv", ["scone_pl", *args])
        main(args)
    return yaml.safe_load(shown.getvalue())


def _is_key(key: str) -> bool:
    """Whether a dotted key is one of a recipe's; what is null there may have any keys."""
    recipe = _recipe()
    names = key.split(".")
    starts: list[Any] = [recipe, recipe["model"]["init_args"], recipe["data"]]
    return any(_leads(start, names) for start in starts)


def _resolves(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return bool(module) and hasattr(importlib.import_module(module), attribute)
    return True


def _leads(value: Any, names: list[str]) -> bool:
    if not names or value is None:
        return True
    if isinstance(value, list):
        return any(_leads(item, names) for item in value)
    return isinstance(value, dict) and names[0] in value and _leads(value[names[0]], names[1:])
