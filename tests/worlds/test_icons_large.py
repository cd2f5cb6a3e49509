"""World 2 one size up: its preset, its recipes over the small ones, and studies at scale large."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.cli.stages import stages
from scone_pl.errors import UserError
from scone_pl.estimate.settings import recipe_of
from scone_pl.estimate.state import Network
from scone_pl.model.config import icons, icons_large
from scone_pl.model.sequence import SpecialTokens
from scone_pl.model.vae import FluxAutoencoder
from scone_pl.study.spec import Study, merged_files, study_names
from scone_pl.training.start import check_start
from scone_pl.worlds.evaluate import packing_of
from scone_pl.worlds.icons.autoencoder import shipped, world_images
from scone_pl.worlds.icons.shards import ICON_SETS
from scone_pl.worlds.icons.world import IconsConfig

RECIPES = ("base", "stage1", "stage2")
STUDIES = study_names(ROOT / "experiments/studies", "large")


def test_the_preset_is_four_times_as_large_with_the_same_layers() -> None:
    small, large = icons(), icons_large()
    assert large.decoder.num_layers == small.decoder.num_layers
    assert large.autoencoder == small.autoencoder
    counts = [Network.of(config, ()).count()["generation"] for config in (small, large)]
    assert 3.8 < counts[1] / counts[0] < 4.2
    sequence = large.sequence_format(SpecialTokens(0, 1, 2, 3))
    packing = packing_of(64, sequence)
    assert 64 // sequence.latent_stride == 16
    assert 64 // sequence.vit_patch_size == large.vit.positions_per_side == 9
    assert packing.vit_resize.max_size == 64
    with pytest.raises(UserError, match="at most 64 pixels"):
        packing_of(68, sequence)


def test_the_shipped_autoencoder_serves_the_larger_canvas() -> None:
    config, weights = shipped()
    model = FluxAutoencoder(config)
    model.load_state_dict(weights)
    quality = {}
    with torch.no_grad():
        for side in (32, 64):
            images = world_images(8, IconsConfig(canvas=side), seed=7)
            latents = model.encode(images)
            assert latents.std() == pytest.approx(1, abs=0.15)
            error = (model.decode(latents).clamp(-1, 1) - images).square().mean()
            quality[side] = 10 * torch.log10(4 / error)
    assert quality[64] > quality[32] - 0.5


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_the_small_ones_at_another_size(name: str) -> None:
    small = ROOT / f"experiments/icons/{name}.yaml"
    large = merged_files((str(small), str(ROOT / f"experiments/icons/large/{name}.yaml")))
    expected = json.dumps(merged_files((str(small),)))
    for known, other in (
        ("data_shards/icons/", "data_shards/icons_large/"),
        ("runs/icons/", "runs/icons_large/"),
        ("experiments/icons/base_weights", "runs/icons_large/base/generation/weights"),
        ('"max_size": 32, "min_size": 32', '"max_size": 64, "min_size": 64'),
        ('"lr": 0.002', '"lr": 0.001'),
        ('"accelerator": "cpu"', '"accelerator": "auto"'),
    ):
        expected = expected.replace(known, other)
    budgets = r'("token_budget": )\d+'
    assert re.sub(budgets, r"\1", json.dumps(large)) == re.sub(budgets, r"\1", expected)


@pytest.mark.parametrize("name", STUDIES)
def test_studies_ask_the_same_of_the_same_arms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    large, small = Study.read(name, "large"), Study.read(name)
    assert large.arms == small.arms
    assert (large.question, large.quick, large.init_of) == (small.question, small.quick, small.init_of)
    assert large.evaluations.keys() == small.evaluations.keys()
    for key, evaluation in large.evaluations.items():
        known = vars(small.evaluations[key])
        count = vars(evaluation)["per_task"]  # may be smaller: an episode takes twenty times as long
        assert 100 <= count <= known["per_task"]
        expected = {**known, "world": {**known["world"], "canvas": 64}, "per_task": count}
        assert vars(evaluation) == expected
    for arm in [arm for arm in large.arms if large.arms[arm].trained]:
        text = json.dumps(large.recipe_of(arm))
        assert "data_shards/icons_large/" in text
        assert "data_shards/icons/" not in text
        assert {*re.findall(r'"m(?:ax|in)_size": (\d+)', text)} == {"64"}
    (prepared,) = large.prepare
    base = merged_files(tuple(prepared.split()))
    assert large.init_from in ("", f"{base['output_dir']}/{base['chain'][-1]['name']}/weights")


def test_estimates_take_the_size_of_the_recipes() -> None:
    paths = (str(ROOT / f"experiments/icons/{part}stage2.yaml") for part in ("", "large/"))
    recipe = recipe_of(stages(["fit", *(word for path in paths for word in ("--config", path))]))
    assert recipe.source.startswith("preset icons_large, ")
    assert recipe.config == icons_large()


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("runs/icons/contrastive", "make icons-pretrained"),
        ("runs/icons_large/random", "make icons-random SCALE=large"),
    ],
)
def test_missing_weights_to_start_from_name_what_makes_them(folder: str, command: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no checkpoint folder {tmp_path / folder}; make it with: {command}$"):
        check_start(str(tmp_path / folder))


@pytest.mark.slow
def test_the_main_comparison_runs_from_data_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    world = ["--world", "{names: 80, canvas: 64}", "--progress", "false"]
    sizes = [word for name in ICON_SETS for word in (f"--{name}", "12")]
    assert main(["icons", "shards", "--output", "data_shards/icons_large", *sizes, *world]) == 0
    assert main(["icons", "base", "--output", "runs/icons_large/contrastive", "--preset", "icons_large"]) == 0
    short = {"icons": {"per_task": 1, "sampling": {"num_inference_steps": 1}}}
    options = ["--scale", "large", "--arms", "c_soft", "--evaluators", json.dumps(short)]
    fit = ["--trainer.max_steps", "1", "--data.packing.token_budget", "2600", "--trainer.accelerator", "cpu"]
    assert main(["study", "run", "icons_table5", *options, "--", *fit]) == 0
    (result,) = tmp_path.glob("runs/evidence/large/icons_table5/c_soft-*/seed0/result-*.json")
    report = json.loads(result.read_text())["evaluations"]["main"]
    assert report["pictures"] == 6
    assert report["mask"]
