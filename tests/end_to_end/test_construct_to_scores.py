"""From pools to scores: construct with models on loopback, two steps of training, an evaluation with a judge."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from running import ROOT
from tiny_checkpoints import write_folder

from scone_pl.__main__ import main
from scone_pl.construct.pipeline import Pipeline
from scone_pl.data.shards import ShardSet
from scone_pl.evaluation.benchmarks.sconeeval import SCONEEVAL
from scone_pl.evaluation.folder import EvaluationFolder
from scone_pl.evaluation.records import read_records
from scone_pl.worlds.planted.pools import write_pools
from scone_pl.worlds.planted.proof import construction
from scone_pl.worlds.planted.server import IconServer

sys.path.insert(0, str(ROOT / "tests/evaluation"))
from fake_judge import serving

SIZE = "{max_size: 8, min_size: 8}"


@pytest.mark.slow
def test_construct_fit_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pools = write_pools(tmp_path / "icons", 12, 8, seed=2)
    with IconServer(pools, errors=0.0) as server:
        Pipeline(construction(pools, tmp_path / "out", server.url, workers=1, sample=30)).run(progress=False)
    for name, kind in (("refined", "single"), ("multi", "multi")):
        shards = ShardSet(tmp_path / "out/shards" / name)
        samples = [shards.read(i) for i in range(len(shards))]
        assert {sample.kind for sample in samples} == {kind}
        for sample in samples:  # licence and source travel, whichever steps made it
            assert sample.metadata["license"].startswith("MIT")
            assert sample.metadata["pool"] in ("pairs", "sets", "photos")
            assert sample.metadata["source"]
    recipe = ["fit", "--config", f"{ROOT}/experiments/mini/stage2.yaml", "--chain", "null", "--trainer.max_steps", "2"]
    recipe += ["--model.init_args.init_from", str(write_folder(tmp_path / "base")), "--data.val", "[]"]
    recipe += ["--model.init_args.bridge", "{source_layer: 0, first_masked_layer: 1, last_masked_layer: 1}"]
    recipe += ["--data.train", f"[{{path: {tmp_path}/out/shards/refined}}, {{path: {tmp_path}/out/shards/multi}}]"]
    recipe += ["--data.packing.vae_resize", SIZE, "--data.packing.vit_resize", SIZE, "--data.num_workers", "0"]
    recipe += ["--output_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    assert main(recipe) == 0
    with serving() as judge:
        command = ["evaluate", "--benchmark", "sconeeval", "--data", f"{ROOT}/tests/evaluation/benchmarks/sconeeval"]
        command += ["--checkpoint", str(tmp_path / "run/weights"), "--output", str(tmp_path / "scores"), "--limit", "1"]
        command += ["--rounds", "1", "--scorings", "1", "--judge.base_url", judge.url, "--judge.model", "gpt-4.1", "--"]
        command += ["--model.init_args.sampling.num_inference_steps", "2", "--trainer.accelerator", "cpu"]
        assert main(command) == 0, capsys.readouterr().err
    records = read_records(EvaluationFolder(tmp_path / "scores").scores, SCONEEVAL)
    assert records
    assert all(record["failure"] is None for record in records)
