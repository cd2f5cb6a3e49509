"""Every command in the documentation is parsed by the program that it calls; those that can run here are run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from command_lines import KINDS, LIGHTNING_VERBS, makefile_commands, parse_line, parse_verb
from documents import Block, blocks, commands
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.construct.settings import Construction

SHELL = blocks("bash", "sh", "shell", "console")
_MINI_SETS = ("questions", "base_single", "refined_single", "multi_candidate", "multi_wide", "validation")
SHORTER = {
    **{verb: ["--trainer.max_steps", "1", "--trainer.val_check_interval", "1"] for verb in LIGHTNING_VERBS},
    "generate": ["--num_inference_steps", "2", "--dtype", "float32"],
    "mini shards": [word for name in _MINI_SETS for word in (f"--{name}", "40")],
    "mini evaluate": ["--per_task", "1"],
}
"""Added to commands that are run, by verb or verb and command, so that they take seconds."""
_OURS = re.compile(r"([A-Z_]+=\S+ )*\.venv/bin/python (-m scone_pl|benchmarks)")
TARGETS = re.findall(r"^([a-z0-9_-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_block_says_how_it_is_tested() -> None:
    assert [str(block) for block in blocks("bash", "python") if block.mode is None] == []
    assert [str(block) for block in SHELL if block.mode == "parse" and not block.reason] == []
    assert len(SHELL) > 20


@pytest.mark.parametrize("block", SHELL, ids=str)
@pytest.mark.usefixtures("in_sandbox")
def test_commands_parse(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(block):
        parse_line(words)


@pytest.mark.parametrize("block", [b for b in SHELL if b.mode == "run"], ids=str)
@pytest.mark.usefixtures("in_sandbox")
def test_commands_run(block: Block) -> None:
    _run(block)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({b.file for b in SHELL if b.mode == "slow"}))
@pytest.mark.usefixtures("in_sandbox")
def test_slow_commands_run(file: str) -> None:
    for block in SHELL:
        if (block.file, block.mode) == (file, "slow"):  # a page's later commands may need what its earlier ones write
            _run(block)


def _run(block: Block) -> None:
    for words in commands(block):
        assert words[:3] == ["python", "-m", "scone_pl"], f"{block}: only verbs are run"
        args = words[3:]
        shorter = SHORTER.get(args[0], []) + SHORTER.get(" ".join(args[:2]), [])
        assert main([*args, *shorter]) == 0, shlex.join(words)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.usefixtures("in_sandbox")
def test_the_makefile_calls_what_exists(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = makefile_commands(target, "CHECKPOINT=weights/Scone", "DATA=../SconeEval")
    ours = [
        shlex.split(line) for line in lines if re.match(r"([A-Z_]+=\S+ )*\.venv/bin/python (-m scone_pl|bench)", line)
    ]
    for words in ours:
        parse_line(words)
    if target in ("demo", "photos", "table5", "parity", "bench"):
        assert ours


def test_make_help_lists_every_target() -> None:
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^  ([a-z0-9_-]+) ", result.stdout, re.MULTILINE)) == set(TARGETS)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_part_of_a_recipe_or_pipeline(block: Block, in_sandbox: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    assert content
    if "pools" in content:  # a pipeline for training data
        pipeline = Construction(**content)
        pipeline.parsed_outputs(pipeline.parsed_steps())
        assert pipeline.pool_configs()
        assert pipeline.model_configs()
        return
    (tmp_path / "overlay.yaml").write_text(block.text)
    parse_verb(["fit", "--config", "experiments/stage1.yaml", "--config", str(tmp_path / "overlay.yaml")])


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text.replace("\n", " "))


@pytest.mark.parametrize(
    "line",
    [
        "python -m scone_pl generate --checkpoint weights/Scone --instructions x",
        "python -m scone_pl fit --config experiments/nothing.yaml",
        "python -m scone_pl fit --config experiments/mini/stage2.yaml --trainer.max_step 2",
        "python -m scone_pl shards turn a b",
        "python -m scone_pl fits",
        "python benchmarks/data.py --sources DIR",
        "torchrun --nproc-per-nodes 4 -m scone_pl predict --config experiments/predict.yaml",
        "make tables",
        "make table2 CHECKPOINTS=weights/Scone",
        "curl x",
    ],
)
@pytest.mark.usefixtures("in_sandbox")
def test_a_wrong_command_is_noticed(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit, Exception)):
        parse_line(shlex.split(line))
    assert KINDS


def test_a_scale_that_a_study_lacks_is_refused_before_its_data_are_made() -> None:
    assert "--scale large" in makefile_commands("icons_table5", "SCALE=large")[-1]
    with pytest.raises(subprocess.CalledProcessError) as caught:
        makefile_commands("icons_oracle", "SCALE=large")
    assert "icons_oracle has no scale large" in caught.value.stderr
