"""Paths and files of every kind in front of every verb: a result or one line, never a traceback and never a wait."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.files import read_yaml
from scone_pl.gpus import read_gpus

BASE = f"{ROOT}/experiments/mini/base_weights"
RECIPE = f"{ROOT}/experiments/mini/stage1.yaml"
BENCHMARK = f"{ROOT}/tests/evaluation/benchmarks/sconeeval"
JUDGE = ("--judge.base_url", "http://127.0.0.1:9/v1")


@pytest.fixture(scope="module")
def odd_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By what they are."""
    root = tmp_path_factory.mktemp("odd")
    (root / "folder").mkdir()
    (root / "file").write_text("x")
    (root / "empty.json").write_text("")
    (root / "binary.jsonl").write_bytes(bytes(range(256)))
    os.mkfifo(root / "pipe.json")
    (root / "dangling").symlink_to(root / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    (root / "zero.json").symlink_to("/dev/zero")
    return {
        "missing": str(root / "no" / "such"),
        "folder": str(root / "folder"),
        "file": str(root / "file"),
        "below a file": str(root / "file" / "x.json"),
        "empty file": str(root / "empty.json"),
        "binary file": str(root / "binary.jsonl"),
        "pipe": str(root / "pipe.json"),
        "device": "/dev/zero",
        "link to a device": str(root / "zero.json"),
        "link to nothing": str(root / "dangling"),
        "link to itself": str(root / "loop"),
        "not UTF-8": os.fsdecode(os.fsencode(root) + b"/\xff\xfe"),
        "half an emoji": str(root / "\ud83d"),
        "null byte": str(root / "a\0b"),
        "long name": str(root / ("x" * 300)),
        "nothing": "",
        "blank": " ",
        "address": "https://127.0.0.1:9/x",
        "line break": str(root / "a\nb"),
    }


def attempts(path: str, out: Path) -> Iterator[list[str]]:
    """Every option that names something to read, with `path` in it."""
    drawn, prompt = ["--output", f"{out}/x.png"], ["--instruction", "draw the only star on red"]
    yield ["generate", "--checkpoint", path, *prompt, *drawn]
    yield ["generate", "--checkpoint", BASE, *prompt, *drawn, "--image", path, "--dry_run"]
    yield ["generate", "--checkpoint", BASE, *prompt, *drawn, "--bridge", path, "--dry_run"]
    yield ["layers", "--checkpoint", path, "--data", "x"]
    if "://" not in path:
        yield ["layers", "--checkpoint", BASE, "--data", path]
        yield ["shards", "verify", path, "--workers", "1"]
        yield ["shards", "stats", path]
        yield ["shards", "convert", path, f"{out}/set", "--workers", "1"]
        yield ["shards", "convert", BENCHMARK, f"{out}/set", "--workers", "1", "--tokenizer", path]
    yield ["export", path, f"{out}/exported"]
    yield ["parity", path]
    yield ["fit", "--config", path]
    scored = ["--benchmark", "sconeeval", "--data", BENCHMARK]
    yield ["evaluate", *scored[:2], "--data", path, "--output", f"{out}/e", "--only", "judge", *JUDGE]
    yield ["evaluate", *scored, "--output", f"{out}/e", "--checkpoint", path, *JUDGE]
    yield ["evaluate", *scored, "--output", f"{out}/e", "--images", path, "--only", "tables"]
    yield ["judge", *scored, "--output", f"{out}/e", "--dry_run", "--judge.prices", path]
    yield ["judge", *scored, "--output", f"{out}/e", "--dry_run", "--judge.prompts", path]
    yield ["judge", *scored, "--output", f"{out}/e", "--dry_run", "--config", path]
    yield ["tables", *scored[:2], "--scores", path]
    yield ["mini", "report", "--scores", json.dumps([path]), "--names", '["a"]']
    yield ["mini", "evaluate", "--checkpoint", path, "--output", f"{out}/m", "--per_task", "1", "--progress", "false"]
    yield ["study", "plan", path]
    yield ["study", "status", path]


def checked(args: list[str], capsys: pytest.CaptureFixture[str], allowed: tuple[int, ...] = (2,)) -> int:
    """Runs a verb; its status. What it says on refusing is one line."""
    status = main(args)
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert status in allowed, (args, said)
    if status == 2:
        assert [line for line in said if line.startswith("error: ")] == said[-1:], (args, said)
        assert not [line for line in said if "Traceback" in line], (args, said)
        assert len(said[-1]) < 1500, (args, said)
    return status


KINDS = ("missing", "folder", "file", "below a file", "empty file", "binary file", "pipe", "device", "link to a device")
KINDS += ("link to nothing", "link to itself", "not UTF-8", "half an emoji", "null byte", "long name", "nothing")
KINDS += ("blank", "address", "line break")
QUICK = ("missing", "folder", "binary file", "pipe", "device", "half an emoji")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_odd_paths_to_read_are_one_line(
    kind: str, odd_paths: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for args in attempts(odd_paths[kind], tmp_path / "out"):
        checked(args, capsys)


# ---------------------------------------------------------------------- files with odd content
ODD: list[Any] = [None, True, 0, -1, 1.5, 1e308, float("nan"), "", "x", "\ud83d", [], [[]], {}, {"a": {}}, 10**400]


def mutated(value: Any, draw: random.Random) -> Any:
    """`value` with one part, however deep, replaced by something odd, removed or doubled."""
    value = copy.deepcopy(value)
    owner: Any = None
    key: Any = None
    part = value
    while isinstance(part, dict | list) and part and draw.random() < 0.85:
        owner, key = part, draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
        part = part[key]
    if owner is None:
        return draw.choice(ODD)
    if draw.random() < 0.75:
        owner[key] = draw.choice(ODD)
    elif draw.random() < 0.5:
        del owner[key]
    elif isinstance(owner, list):
        owner.append(copy.deepcopy(part))
    else:
        owner["odd"] = part
    return value


REPORT = {
    "blocked_share": 0.5,
    "kept": {"a": {"precision": 0.5, "recall": 0.5}},
    "pictures": 2,
    "tasks": {task: {"COM": 1.0, "DIS": 2.0} for task in SCONEEVAL_TASKS},
    "choice": {"a": 0.5},
    "average": {"COM": 1.0, "DIS": 2.0},
    "overall": 1.5,
    "failures": {"none": 1},
}
RECORD = {"sampling": 1, "scoring": 1, "key": "a", "task_type": SCONEEVAL_TASKS[0], "PF": 8, "SC": 7}
GPUS = {"mine": {"name": "Mine", "tflops": 100, "memory_gib": 80, "price": 1.0}, "h100": {"price": 2}}
STUDY = yaml.safe_load(Path(f"{ROOT}/experiments/studies/no_experts.yaml").read_text())
OPTIONS = {"rounds": 1, "scorings": 1, "limit": 1, "judge": {"model": "x", "parameters": {"a": 1}, "timeout": 5}}


def read_by(name: str, file: Path) -> list[str]:
    """The command that reads `file`."""
    scored = ["--benchmark", "sconeeval", "--data", BENCHMARK, "--output", f"{file.parent}/out"]
    return {
        "report": ["mini", "report", "--scores", json.dumps([str(file)]), "--names", '["a"]'],
        "records": ["tables", "--benchmark", "sconeeval", "--scores", str(file), "--json"],
        "study": ["study", "plan", str(file)],
        "options": ["judge", *scored, "--dry_run", "--config", str(file)],
    }[name]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value).encode("utf-8", "surrogatepass")


CONTENT: dict[str, tuple[Any, Callable[[Any], bytes], int]] = {
    "report": (REPORT, as_json, 80),
    "records": (RECORD, as_json, 80),
    "study": (STUDY, as_yaml, 60),
    "options": (OPTIONS, as_yaml, 60),
}


@pytest.mark.parametrize("name", CONTENT)
def test_odd_content_is_a_result_or_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    valid, encode, count = CONTENT[name]
    monkeypatch.chdir(ROOT)
    file = tmp_path / ("x.yaml" if encode is as_yaml else "x.jsonl")
    draw = random.Random(name)
    file.write_bytes(encode(valid))
    checked(read_by(name, file), capsys, (2,) if name in ("study", "options") else (0,))  # those name what is missing
    contents = [encode(mutated(valid, draw)) for _ in range(count)]
    contents += [b"", b"\xff\xfe", b"[" * 5000, b"null", b"{", b"\xef\xbb\xbf" + encode(valid), encode([valid])]
    contents += [
        b"a: &a [*a]",
        b"{a: 1, a: 2}",
        b"- 2001-99-99",
        b"a: " + b"9" * 5000,
        b"a: !!python/object:os.system x",
    ]
    for content in contents:
        file.write_bytes(content)
        checked(read_by(name, file), capsys, (0, 1, 2))


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", "1", "nan", "{", "'{\"a\": 1}'", "\ud83d", "[[[[", "{interval: [1]}"]
)
def test_odd_settings_on_the_command_line_are_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["--checkpoint", BASE, "--instruction", "draw the only star on red", "--output", f"{tmp_path}/x.png"]
    for args in (
        ["generate", *prompt, "--dry_run", f"--step_cache={text}"],
        ["generate", *prompt, "--dry_run", f"--guidance_interval={text}"],
        ["mini", "contact_sheet", "--output", f"{tmp_path}/w.png", "--per_task", "1", f"--world={text}"],
        ["shards", "stats", "nowhere", f"--packing={text}"],
        ["fit", "--config", RECIPE, f"--data.train={text}", f"--output_dir={tmp_path}/run", "--trainer.max_step=1"],
        ["fit", "--config", RECIPE, f"--chain={text}", f"--output_dir={tmp_path}/run", "--trainer.max_step=1"],
    ):
        checked(args, capsys, (0, 2))


def test_odd_tables_of_gpus_are_read_or_one_line(tmp_path: Path) -> None:
    draw, file = random.Random(0), tmp_path / "gpus.yaml"
    for _ in range(200):
        file.write_bytes(as_yaml(mutated(GPUS, draw)))
        try:
            table = read_gpus(file)
        except UserError:
            continue
        assert all(0 <= gpu.tflops < 1e10 and 0 <= gpu.price < 1e10 for gpu in table.values())


BOMB = b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b"*a%d, " % (i - 1) * 9) for i in range(1, 12))
"""A few lines whose aliases stand for 9 ** 11 values."""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a: 1\nb: {c: 1, c: 2}\n", "'c' comes twice"),
        (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"- 1", "must be a mapping"),
        (b"a: 2001-99-99", "not YAML"),
        (b"a: [", "not YAML"),
        (b"\xff", "not UTF-8"),
        (b"a: !!python/object/apply:os.system [x]", "not YAML"),
        (b"a: &a\n  b: [*a]\n", "begins in line 1 has an alias of itself in it"),
        (b"a: &a {x: &b [*a, *b]}", "has an alias of itself in it"),
        (BOMB, "more than 100000 values"),
    ],
)
def test_yaml_that_is_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        read_yaml(file, dict)
    assert str(file) in str(caught.value)


def test_yaml_that_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfbase: &base {a: 1}\nother: {<<: *base, a: 2}\nsame: *base\n")
    assert read_yaml(file, dict) == {"base": {"a": 1}, "other": {"a": 2}, "same": {"a": 1}}
    file.write_text("# nothing\n")
    assert read_yaml(file, dict) == {}


def test_a_recipe_that_jsonargparse_would_misread_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, recipe = tmp_path / "x.yaml", Path(RECIPE).read_bytes()
    for content, complaint in (
        (recipe + b"\noutput_dir: a\noutput_dir: b\n", "the key 'output_dir' comes twice"),
        (recipe + b"\n# \xff\n", "not UTF-8 at byte"),
        (recipe.replace(b"output_dir:", b"# ") + b'\noutput_dir: "a\\0b"\n', "null byte"),
    ):
        file.write_bytes(content)
        assert main(["fit", "--config", str(file)]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert complaint in said[0]


CONFIGS = {
    b"": "holds no settings",
    b"# nothing\n": "holds no settings",
    b"null": "holds no settings",
    b"- a\n": "must be a mapping",
    b"word": "must be a mapping",
    b"1: 2\n": "the key 1 is not a name",
    b"null: 2\n": "the key None is not a name",
    b"a: [": "not YAML",
    b"a: 1\n---\nb: 2\n": "not YAML",
    b"a: 1\0": "not YAML",
    b"\xff\xfea\0": "not UTF-8",
    b"config: x.yaml\n": "its `config` x.yaml includes itself",
    b"config: [y.yaml]\n": "its `config` x.yaml includes itself",
    b"config: pipe\n": "pipe is not a regular file",
    b"trainer: pipe\n": "pipe is not a regular file",
    b"a: [{b: /dev/zero}]\n": "/dev/zero is not a regular file",
    BOMB: "more than 100000 values",
    b"a: &a [*a]": "has an alias of itself in it",
}


@pytest.mark.parametrize("verb", [("fit",), ("shards", "stats", "x"), ("estimate",)])
def test_files_of_config_that_hold_no_settings_are_named(
    verb: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yaml"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "y.yaml").write_text("config: x.yaml\n")
    for content, complaint in CONFIGS.items():
        file.write_bytes(content)
        assert main([*verb, "--config", str(file)]) == 2, content
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert complaint in said
        assert str(tmp_path) in said


def test_aliases_on_the_command_line_are_counted_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    flow = "{" + BOMB.decode().strip().replace("\n", ", ") + "}"
    for value, complaint in ((flow, "more than 100000 values"), ("&a {x: *a}", "has an alias of itself in it")):
        for args in (["--trainer", value], [f"--trainer={value}"]):
            assert main(["fit", "--config", RECIPE, *args]) == 2
            (said,) = capsys.readouterr().err.strip().splitlines()
            assert said.startswith("error: --trainer: ")
            assert complaint in said


def test_a_missing_study_is_said_whatever_lies_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.yaml").write_bytes(b"\xff")
    assert main(["study", "plan", str(tmp_path / "absent.yaml")]) == 2
    assert "no study absent in" in capsys.readouterr().err
