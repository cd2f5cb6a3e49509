"""Every verb checks its output before it reads or computes anything: inputs here do not even exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.verbs import VERBS

STAGE1 = str(ROOT / "experiments/mini/stage1.yaml")
ABSENT = "/absent/input"
FIT = ("--config", STAGE1, "--chain", "null", "--model.init_args.init_from", ABSENT)
BENCHMARK = ("--benchmark", "sconeeval", "--data", ABSENT)


@dataclass(frozen=True)
class Output:
    """An output of a verb."""

    args: tuple[str, ...]
    """All but the output; inputs that need to be read are absent."""
    option: str
    """Empty: an argument by its position."""
    is_folder: bool = True
    files: tuple[str, ...] = ()
    """Within a folder."""
    folders: tuple[str, ...] = ()
    name: str = "out"


OUTPUTS = {
    "fit": Output(("fit", *FIT), "--output_dir", files=("config.yaml",), folders=("weights", "checkpoints")),
    "fit chain": Output(
        ("fit", "--config", STAGE1, "--model.init_args.init_from", ABSENT),
        "--output_dir",
        files=("refined/outcome.json",),
        folders=("refined", "base/tensorboard"),
    ),
    "validate": Output(("validate", *FIT), "--output_dir", folders=("tensorboard",)),
    "test": Output(("test", *FIT), "--output_dir"),
    "predict": Output(
        ("predict", *FIT), "--output_dir", files=("predictions/settings.json",), folders=("predictions",)
    ),
    "export": Output(("export", ABSENT), ""),
    "generate": Output(
        ("generate", "--checkpoint", ABSENT, "--instruction", "a"), "--output", is_folder=False, name="a.png"
    ),
    "generate bridge": Output(
        ("generate", "--checkpoint", ABSENT, "--instruction", "a", "--output", "b.png"),
        "--bridge_image",
        is_folder=False,
        name="a.png",
    ),
    "init": Output(("init",), "", files=("Makefile", "README.md"), folders=("experiments",)),
    "demo": Output(("demo",), "--output", folders=("experiments", "data_shards", "runs")),
    "download": Output(("download", "nobody/nothing"), "--to"),
    "evaluate": Output(
        ("evaluate", *BENCHMARK, "--checkpoint", ABSENT),
        "--output",
        files=("evaluation.json", "scores.jsonl", "report.html", "answers.jsonl", "tables/table.md"),
        folders=("tables",),
    ),
    "judge": Output(("judge", *BENCHMARK), "--output", files=("scores.jsonl",)),
    "tables": Output(("tables", "--benchmark", "sconeeval", "--scores", ABSENT), "--output", files=("table.tex",)),
    "agreement": Output(
        ("agreement", "--benchmark", "sconeeval", "--candidate", ABSENT, "--reference", ABSENT),
        "--output",
        files=("agreement.md", "agreement.json", "report.html"),
    ),
    "study-page": Output(("study-page", "--runs", ABSENT, ABSENT), "--output", files=("study.html", "study_key.json")),
    "study-choices": Output(
        ("study-choices", "--choices", ABSENT, "--key", ABSENT),
        "--output",
        files=("choices.md", "choices.json", "choices.csv"),
    ),
    "similarity": Output(
        ("similarity", "--data", ABSENT, "--images", ABSENT),
        "--output",
        files=("similarity.md", "similarity.json"),
    ),
    "similarity prompts": Output(("similarity", "--data", ABSENT), "--prompts", is_folder=False, name="a.jsonl"),
    **{
        f"construct {verb}": Output(
            ("construct", verb, "--pools", f"[{{name: a, path: {ABSENT}}}]"),
            "--output",
            files=("construct.sqlite", "sheet.html"),
            folders=("shards", "steps"),
        )
        for verb in ("run", "merge", "sheet")
    },
    "construct demo": Output(("construct", "demo"), "--output", files=("report.md",), folders=("pools",)),
    "layers": Output(
        ("layers", "--checkpoint", ABSENT, "--data", ABSENT),
        "--output",
        files=("layers.json", "maps.png", "histograms.png"),
    ),
    "shards convert": Output(("shards", "convert", ABSENT), ""),
    "shards stats": Output(("shards", "stats", ABSENT), "--contact_sheet", is_folder=False, name="a.png"),
    "mini shards": Output(("mini", "shards"), "--output", folders=("validation", "questions")),
    "mini contact_sheet": Output(("mini", "contact_sheet"), "--output", is_folder=False, name="a.png"),
    "mini base": Output(("mini", "base"), "--output"),
    "mini evaluate": Output(
        ("mini", "evaluate", "--checkpoint", ABSENT), "--output", files=("scores.json", "images.png")
    ),
    "icons shards": Output(("icons", "shards"), "--output", folders=("validation", "questions")),
    "icons contact_sheet": Output(("icons", "contact_sheet"), "--output", is_folder=False, name="a.png"),
    "icons base": Output(("icons", "base"), "--output"),
    "icons autoencoder": Output(("icons", "autoencoder"), "--output", is_folder=False, name="a.safetensors"),
    "icons label_images": Output(
        ("icons", "label_images", "--checkpoint", ABSENT), "--output", files=("labels.json", "images.png")
    ),
    "icons judge": Output(("icons", "judge"), "--output", is_folder=False, name="a.json"),
    "icons evaluate": Output(
        ("icons", "evaluate", "--checkpoint", ABSENT), "--output", files=("scores.json", "images.png")
    ),
    "study run": Output(("study", "run", "table5"), "--output", files=("table5.json", "table5.png")),
}
PRINTS_ONLY = {
    "app",
    "estimate",
    "parity",
    "shards verify",
    "mini report",
    "icons agreement",
    "study plan",
    "study status",
    "construct plan",
    "construct status",
}
WRITES_TO_A_FIXED_PATH = {"latents", "study arm", "study page"}


def test_every_verb_is_here() -> None:
    verbs = {name for name, verb in VERBS.items() if not verb.commands}
    verbs |= {f"{name} {command}" for name, verb in VERBS.items() for command in verb.commands}
    tried = {name for name in OUTPUTS if name not in ("fit chain", "generate bridge", "similarity prompts")}
    assert tried | PRINTS_ONLY | WRITES_TO_A_FIXED_PATH == verbs


def blocked(output: Output, folder: Path) -> dict[str, tuple[Path, Path]]:
    """By name: an output that cannot be written, and the path that the error names."""

    def fresh(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    file = fresh("below a file") / "file"
    file.touch()
    link = fresh("below a broken link") / "link"
    link.symlink_to(folder / "nothing")
    found = {
        "below a file": (file / output.name, file),
        "below a broken link": (link / output.name, link),
        "where nobody can write": (Path("/proc/out") / output.name, Path("/proc/out") / output.name),
    }
    if not output.is_folder:
        path = fresh("a folder") / output.name
        path.mkdir()
        return found | {"a folder": (path, path)}
    path = fresh("a file") / output.name
    path.touch()
    found["a file"] = path, path
    for name in output.files:
        path = fresh(f"{name.replace('/', ' ')} is a folder") / output.name
        (path / name).mkdir(parents=True)
        found[f"{name} is a folder"] = path, path / name
    for name in output.folders:
        path = fresh(f"{name.replace('/', ' ')} is a file") / output.name
        (path / name).parent.mkdir(parents=True)
        (path / name).touch()
        found[f"{name} is a file"] = path, path / name
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "fit chain" else n for n in OUTPUTS])
def test_an_output_that_cannot_be_written_is_refused_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = OUTPUTS[name]
    work = tmp_path / "work"
    work.mkdir()
    (work / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(work)
    monkeypatch.setattr("sys.argv", ["scone_pl"])
    for case, (path, named) in blocked(output, tmp_path).items():
        assert main([*output.args, *filter(None, [output.option]), str(path)]) == 2, case
        printed = capsys.readouterr()
        (line,) = [line for line in printed.err.splitlines() if line.strip()]
        assert line.startswith("error: "), case
        assert str(named) in line, case
        assert ABSENT not in line, case
        assert printed.out == "", case
    assert [entry.name for entry in work.iterdir()] == ["experiments"]
