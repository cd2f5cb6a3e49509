"""`--ckpt_path` of each verb is obeyed, or refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from running import ROOT
from safetensors.torch import load_file

from scone_pl.__main__ import main
from scone_pl.cli.stages import commands

ARGS = [
    *("--config", str(ROOT / "experiments/mini/stage1.yaml"), "--trainer.enable_progress_bar", "false"),
    *("--data.packing.token_budget", "600", "--data.num_workers", "0", "--trainer.limit_val_batches", "1"),
    *("--previews.num_samples", "0", "--checkpoint.every_n_steps", "1", "--trainer.val_check_interval", "99"),
    *("--model.init_args.optimizer", "{lr: 1.0e-2, warmup_steps: 0}"),
]
CHAIN = "[{name: a, trainer: {max_steps: 2}}, {name: b, trainer: {max_steps: 3}}]"


def train(mini_world: Path, folder: Path, *more: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mini_world)
        patch.setattr("sys.argv", ["scone_pl"])
        assert main(["fit", *ARGS, "--output_dir", str(folder), *more]) == 0
    return folder


@pytest.fixture(scope="module")
def single(mini_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained stage."""
    folder = tmp_path_factory.mktemp("runs") / "single"
    return train(mini_world, folder, "--chain", "null", "--trainer.max_steps", "3")


@pytest.fixture(scope="module")
def chain(mini_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of two."""
    return train(mini_world, tmp_path_factory.mktemp("runs") / "chain", "--chain", CHAIN)


@pytest.fixture(autouse=True)
def _elsewhere(mini_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mini_world)
    monkeypatch.setattr("sys.argv", ["scone_pl"])


def loss(capsys: pytest.CaptureFixture[str], folder: Path, *more: str, chain: str = "null") -> float:
    capsys.readouterr()
    assert main(["validate", *ARGS, "--chain", chain, "--output_dir", str(folder), *more]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "val/loss" in line)
    return float(line.replace("│", " ").split()[1])


def refused(capsys: pytest.CaptureFixture[str], verb: str, folder: Path, given: str, chain: str = "null") -> str:
    capsys.readouterr()
    more = ["--output_dir", str(folder), "--trainer.max_steps", "9", "--ckpt_path", given]
    assert main([verb, *ARGS, "--chain", chain, *more]) == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_single_stage_is_evaluated_as_named(single: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    newest = single / "checkpoints/step-000003"
    trained = loss(capsys, single)
    for given in ("last", single / "weights"):
        assert loss(capsys, single, "--ckpt_path", str(given)) == trained
    args = ["validate", *ARGS, "--chain", "null", "--output_dir", str(single), "--ckpt_path"]
    given = ("last", newest, single, single / "checkpoints")
    last, *others = (commands([*args, str(one)])[0][len(args) + 1 :] for one in given)
    assert str(newest) in last
    assert others == [last, last, last]
    older = loss(capsys, single, "--ckpt_path", str(single / "checkpoints/step-000002"))
    assert len({trained, older, loss(capsys, tmp_path / "untrained")}) == 3


@pytest.mark.slow
def test_a_chain_is_evaluated_where_it_stands(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = loss(capsys, chain, chain=CHAIN)
    assert last == loss(capsys, chain, "--ckpt_path", "last", chain=CHAIN)
    of_a = loss(capsys, chain, "--ckpt_path", str(chain / "a"), chain=CHAIN)
    assert of_a == loss(capsys, chain, "--ckpt_path", str(chain / "a/weights"), chain=CHAIN) != last


@pytest.mark.slow
def test_an_unfinished_run_is_evaluated_at_its_newest_snapshot(
    single: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step-000003").symlink_to(single / "checkpoints/step-000003")
    assert loss(capsys, tmp_path) == loss(capsys, single)


@pytest.mark.parametrize(
    ("given", "verb"),
    [
        *(("best", verb) for verb in ("fit", "validate", "test", "predict")),
        *((given, verb) for given in ("hpc", "registry:name", "/no/such/step-000001") for verb in ("fit", "validate")),
    ],
)
def test_words_and_paths_of_nothing_are_refused(
    verb: str, given: str, single: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"--ckpt_path {given}: no such snapshot; give `last`" in refused(capsys, verb, single, given)


def test_last_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for verb in ("fit", "validate"):
        for chain in ("null", CHAIN):
            assert "no" in refused(capsys, verb, tmp_path, "last", chain)
            assert not list(tmp_path.iterdir())


def test_what_is_no_snapshot_is_refused(single: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "foreign.ckpt"
    empty.mkdir()
    torch.save({"a": 1}, foreign)
    for given in (empty, foreign, ROOT / "README.md"):
        assert str(given) in refused(capsys, "validate", single, str(given))
        assert str(given) in refused(capsys, "fit", tmp_path / "new", str(given))


@pytest.mark.slow
def test_fit_does_not_ignore_what_is_given(single: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    elsewhere = str(shutil.copytree(single / "checkpoints/step-000002", tmp_path / "other/checkpoints/step-000002"))
    assert "has its own step-000003 to resume from" in refused(capsys, "fit", single, elsewhere)
    assert "start from them with --model.init_args.init_from" in refused(
        capsys, "fit", tmp_path, str(single / "weights")
    )
    assert "which step of the chain begins there?" in refused(capsys, "fit", tmp_path, elsewhere, CHAIN)
    common = ["fit", *ARGS, "--chain", "null", "--output_dir", str(tmp_path / "begun"), "--ckpt_path"]
    given = str(single / "checkpoints/step-000002")
    assert main([*common, given, "--trainer.max_steps", "1"]) == 2
    assert "is of step 2, beyond trainer.max_steps 1" in capsys.readouterr().err
    for _ in range(2):
        assert main([*common, given, "--trainer.max_steps", "3"]) == 0
    ours, theirs = (load_file(run / "weights/model.safetensors") for run in (tmp_path / "begun", single))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_average_of_a_snapshot_is_evaluated_as_the_result_would_be(
    single: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ema = ["--model.init_args.ema.decay", "0.9"]
    args = ["fit", *ARGS, "--chain", "null", "--output_dir", str(tmp_path), "--trainer.max_steps", "2", *ema]
    assert main(args) == 0
    result = loss(capsys, tmp_path, *ema)  # of weights/, which is the average
    assert loss(capsys, tmp_path, *ema, "--ckpt_path", "last") == result
    raw = loss(capsys, tmp_path, *ema, "--model.init_args.ema.export", "false", "--ckpt_path", "last")
    assert raw != result
    assert loss(capsys, tmp_path, "--ckpt_path", "last") == raw
    refused = ["validate", *ARGS, "--chain", "null", "--output_dir", str(single), *ema, "--ckpt_path", "last"]
    assert main(refused) == 2
    assert "step-000003: holds no average; evaluate its weights with" in capsys.readouterr().err


@pytest.mark.slow
def test_images_of_another_snapshot_are_not_taken_for_this_one_s(
    single: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ["predict", *ARGS, "--chain", "null", "--output_dir", str(single)]
    args += ["--data.predict", "[{path: data_shards/mini/validation}]", "--trainer.limit_predict_batches", "1"]
    args += ["--model.init_args.sampling.num_inference_steps", "2", "--ckpt_path"]
    checkpoints = single / "checkpoints"
    for number in ("2", "2"):
        assert main([*args, str(checkpoints / f"step-00000{number}")]) == 0
    capsys.readouterr()
    assert main([*args, str(checkpoints / "step-000003")]) == 2
    assert "holds images made with other settings (snapshot was " in capsys.readouterr().err
