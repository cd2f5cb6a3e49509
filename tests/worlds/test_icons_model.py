"""World 2's model: its autoencoder, its two grids, and evaluations of a checkpoint folder."""

from __future__ import annotations

import math
import re
import shutil
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import yaml
from running import ROOT, run_scone

from scone_pl.__main__ import main
from scone_pl.checkpoints.folder import read_config
from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ImageResize
from scone_pl.errors import UserError
from scone_pl.evaluation.scores import SCONEEVAL_TASKS
from scone_pl.model.builder import patchify_image
from scone_pl.model.config import icons
from scone_pl.model.network import Network
from scone_pl.model.scone import Scone
from scone_pl.study.evaluators import evaluator_of
from scone_pl.worlds.evaluate import bridge_of
from scone_pl.worlds.icons.autoencoder import SHIPPED, shipped, train
from scone_pl.worlds.icons.base import write_base
from scone_pl.worlds.icons.contrastive import (
    best_similarity,
    described_images,
    image_features,
    instruction_loss,
    means,
    pretrain,
    word_embeddings,
    word_loss,
)
from scone_pl.worlds.icons.questions import caption
from scone_pl.worlds.icons.shards import ICON_SETS, write_icons
from scone_pl.worlds.icons.world import IconsConfig, IconWorld, fixed_set


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("icons") / "random"
    assert write_base(folder)
    assert not write_base(folder)
    return folder


def test_a_folder_keeps_the_narrow_autoencoder_and_the_grids_differ(base):
    config = read_config(base)
    assert config.autoencoder == shipped()[0]
    assert config.autoencoder.norm_groups == 4
    sequence = config.sequence_format(Tokenizer.from_folder(base).special)
    assert 32 // sequence.latent_stride == 8
    assert sequence.vit_positions_per_side == 6
    with pytest.raises(ValueError, match="divisible by 3 for its group norms"):
        type(config.autoencoder)(base_channels=16, norm_groups=3)


def test_the_shipped_autoencoder_is_small_and_decodes_what_it_encodes(base):
    assert SHIPPED.stat().st_size < 600_000
    model = from_pretrained(base).autoencoder
    images = torch.stack([torch.from_numpy(e.target) for e in fixed_set(2)]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(images)
        drawn = model.encode(images, torch.Generator().manual_seed(0), sample=True)
        error = (model.decode(latents).clamp(-1, 1) - images).square().mean()
    assert latents.shape == (12, 4, 8, 8)
    # Training draws from the posterior: were its variance left untrained, its noise would drown the latents.
    assert (drawn - latents).std() < 0.1 * latents.std()
    assert latents.std() == pytest.approx(1, abs=0.15)
    assert 10 * torch.log10(4 / error) > 20


def test_contrastive_pretraining_tells_which_images_show_what_a_word_names(base):
    config = IconsConfig(names=4)
    networks = [from_pretrained(base) for _ in range(2)]

    def pretrained(network: Network) -> float:
        return pretrain(
            cast(Scone, network),
            Tokenizer.from_folder(base),
            config,
            steps=160,
            images=300,
            batch=24,
            lr=3e-3,
            progress=False,
        )

    # 0.52 after one step, 0.74 here.
    assert pretrained(networks[0]) > 0.65
    # 4.21 if words alone are compared, 3.78 here; few steps on few names separate little.
    assert _loss_of_instructions(networks[0], Tokenizer.from_folder(base)) < 4.0
    pretrained(networks[1])
    untouched = from_pretrained(base).state_dict()
    changed = {n.split(".")[0] for n, value in networks[0].state_dict().items() if not value.equal(untouched[n])}
    assert changed == {"vit_model", "connector", "language_model"}
    for name, value in networks[0].state_dict().items():
        assert value.equal(networks[1].state_dict()[name]), name


def test_the_losses_of_pretraining_against_loops():
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(3, 5, generator=generator, dtype=torch.float64) * 2 - 1
    present = torch.rand(3, 5, generator=generator) < 0.4
    scale, bias = torch.tensor(15.0), torch.tensor(-4.5)
    of_words = sum(
        -math.log(1 / (1 + math.exp(-(1 if there else -1) * (15 * cosine - 4.5))))
        for row, own in zip(cosines.tolist(), present.tolist(), strict=True)
        for cosine, there in zip(row, own, strict=True)
    )
    assert word_loss(cosines, present.double(), scale, bias).item() == pytest.approx(of_words / 3)
    square, total = cosines[:, :3].tolist(), 0.0
    for i in range(3):
        others = [[math.exp(20 * square[i][j]) for j in range(3)], [math.exp(20 * square[j][i]) for j in range(3)]]
        total -= sum(math.log(one[i] / sum(one)) for one in others) / 2
    assert instruction_loss(cosines[:, :3], torch.tensor(20.0)).item() == pytest.approx(total / 3)
    words = torch.rand(4, 6, generator=generator)
    found = means(torch.tensor([[2.0, 0, 1, 0], [0, 0, 0, 1]]), words)
    torch.testing.assert_close(found, torch.stack([(words[0] + words[0] + words[2]) / 3, words[3]]))


def _loss_of_instructions(network: Network, tokenizer: Tokenizer) -> float:
    """Loss of instructions in 40 images that pretraining has not seen."""
    assert isinstance(network, Scone)
    described = list(islice(described_images(IconsConfig(names=4), seed=1), 40))
    resize = ImageResize(5, 32, 32)
    patches = torch.stack([patchify_image(resize(one.image, interleaved=True), 5) for one in described])
    with torch.no_grad():
        texts = [word_embeddings(network, torch.tensor(tokenizer.encode(x.instruction))).mean(0) for x in described]
        cosines = best_similarity(image_features(network, patches), torch.stack(texts))
    return instruction_loss(cosines, torch.tensor(30.0)).item()


def test_an_image_comes_with_a_caption_of_all_its_subjects_and_its_episode_s_instruction():
    config, described = IconsConfig(names=8), []
    world = IconWorld(0, config, ICON_SETS["questions"].stream)
    tasks = [task for task in SCONEEVAL_TASKS if task != "composition_multi"]
    for number in range(20):
        episode = world.sample(tasks[number % 5], number)
        described += [
            (episode, caption(episode, group, scene.name), image)
            for group, scene, image in zip(
                episode.candidates, episode.reference_scenes, episode.references, strict=True
            )
        ]
    for one, (episode, text, image) in zip(described_images(config), described, strict=False):
        assert one.instruction == episode.instruction
        assert one.caption == text
        assert np.array_equal(one.image, image)


def test_the_autoencoder_trains_again_and_its_file_is_whole(tmp_path):
    assert train(tmp_path / "a.safetensors", steps=2, images=4, batch=2, held_out=2, progress=False) > 0
    assert (tmp_path / "a.safetensors").stat().st_size == SHIPPED.stat().st_size
    assert icons().autoencoder.downsample == 4


@pytest.mark.slow
def test_the_recipes_train_one_after_another_on_their_sets(base, tmp_path):
    sets = dict.fromkeys(ICON_SETS, 40)
    for name, samples in sets.items():
        write_icons(tmp_path / "data_shards/icons" / name, name, samples, progress=False)
    for start in ("runs/icons/contrastive", "experiments/icons/base_weights"):
        shutil.copytree(base, tmp_path / start)
    for recipe in ("base", "stage1", "stage2"):
        text = re.sub(r"max_steps: \d+", "max_steps: 2", (ROOT / f"experiments/icons/{recipe}.yaml").read_text())
        (tmp_path / f"{recipe}.yaml").write_text(text)
        assert run_scone("fit", "--config", f"{recipe}.yaml", cwd=tmp_path).returncode == 0
    assert bridge_of(tmp_path / "runs/icons/stage2/guidance/weights").quantile == 0.8


def test_evaluations_of_both_kinds_read_a_folder(base, tmp_path):
    tasks = ["distinction_single_cross"]
    scores = evaluator_of({"evaluator": "icons", "per_task": 2, "tasks": tasks, "mask": "off"})
    report = scores.evaluate(base, tmp_path)
    assert report["pictures"] == 2
    assert 0 <= scores.metrics["choice"](report) <= 100
    exact = {"oracle": True, "first_masked_layer": 0, "last_masked_layer": 5}
    given = {"mask": "given", "bridge": exact, "sampling": {"num_inference_steps": 1}}
    oracle = evaluator_of({"evaluator": "icons", "per_task": 2, "tasks": tasks, **given})
    assert oracle.evaluate(base, tmp_path)["kept"] == {tasks[0]: {"precision": 1.0, "recall": 1.0}}
    named = {"pooling": "names", "source_layer": 0, "first_masked_layer": 1, "last_masked_layer": 5, "quantile": 0.6}
    by_name = evaluator_of({"evaluator": "icons", "per_task": 2, "tasks": tasks, **given, "bridge": named})
    assert 50 < by_name.metrics["blocked"](by_name.evaluate(base, tmp_path)) < 70
    layers = evaluator_of({"evaluator": "icons", "kind": "layers", "per_task": 4, "tasks": tasks})
    auroc = layers.evaluate(base, tmp_path)["layers"]["understanding"][tasks[0]]["auroc"]
    assert len(auroc) == icons().decoder.num_layers
    with pytest.raises(UserError, match=r"world\.canvas is 64"):
        evaluator_of({"evaluator": "icons", "per_task": 1, "tasks": tasks, "world": {"canvas": 64}}).evaluate(
            base, tmp_path
        )


def test_studies_ask_for_the_names_that_the_training_sets_have():
    names = re.search(r"^ICONS_WORLD := \{names: (\d+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names is not None
    studies = sorted((ROOT / "experiments/studies").glob("icons_*.yaml"))
    assert len(studies) >= 8
    for file in studies:
        study = yaml.safe_load(file.read_text())
        for part in (study, *study.get("scales", {}).values()):
            for label, evaluation in part["evaluations"].items():
                world = evaluation.get("world", {})
                assert world.get("unseen") or world.get("names") == int(names[1]), f"{file.name}: {label}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--world", "{names: 80}"], "only its atlas has an effect"),
        (["--world", "{canvas: 64}", "--contrastive_steps", "1"], "at most 32 pixels a side"),
    ],
)
def test_worlds_that_a_base_cannot_have_are_refused(args, message, tmp_path, capsys):
    assert main(["icons", "base", "--output", str(tmp_path / "base"), *args])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
