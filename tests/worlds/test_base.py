"""The shipped base: made by the recipe that is shipped with it, and able to do what it was made for."""

import json

import pytest
import torch
from running import ROOT, run_scone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scone_pl.checkpoints.model import from_pretrained
from scone_pl.data.packing import PackingConfig, add_sample
from scone_pl.data.seeding import generator
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.data.transforms import ResizeLimits
from scone_pl.model.builder import SequenceBuilder
from scone_pl.worlds.layers import layers_report
from scone_pl.worlds.shapes.base import write_base
from scone_pl.worlds.shapes.episode import TASKS
from scone_pl.worlds.shapes.shards import WORLD_SETS, world_samples, write_world
from scone_pl.worlds.shapes.world import WORDS, fixed_set

BASE = ROOT / "experiments/mini/base_weights"


@pytest.mark.slow
def test_the_recipe_makes_the_first_steps_again(tmp_path):
    """20 steps from the same random weights on the same data give the losses that the shipped base's run logged."""
    expected = json.loads((BASE / "first_steps.json").read_text())
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    write_base(tmp_path / "runs/mini/random")
    for name, samples in (("questions", 24_000), ("question_pairs", 6), ("plain", 8)):
        write_world(tmp_path / "data_shards/mini" / name, WORLD_SETS[name], samples=samples, progress=False)
    args = ["fit", "--config", "experiments/mini/base.yaml", "--trainer.enable_progress_bar", "false"]
    # Its first step alone; the rate does not depend on the number of steps.
    recipe = json.dumps({"chain": [FIRST]})
    done = run_scone(*args[:3], "--config", recipe, *args[3:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "runs/mini/base/understanding/tensorboard"))
    events.Reload()
    for name in ("train/text", "train/alignment"):
        (first, *_) = events.Scalars(name)
        assert first.value == pytest.approx(expected[name][str(first.step)], rel=2e-3)


def _first_step():
    import yaml

    step = yaml.safe_load((ROOT / "experiments/mini/base.yaml").read_text())["chain"][0]
    return {**step, "trainer": {"max_steps": 20}}


FIRST = _first_step()


def test_the_base_is_of_this_world():
    assert Tokenizer.from_folder(BASE).encode(" ".join(WORDS))
    assert json.loads((BASE / "training.json").read_text())["steps"] == 700
    assert sum(f.stat().st_size for f in BASE.iterdir()) < 8e6


@torch.no_grad()
@pytest.mark.slow
def test_the_base_answers_and_finds_the_target_subject():
    model, tokenizer = from_pretrained(BASE), Tokenizer.from_folder(BASE)
    limits = ResizeLimits(max_size=16, min_size=16)
    packing = PackingConfig(vae_resize=limits, vit_resize=limits).without_dropout()
    builder = SequenceBuilder(model.config.sequence_format(tokenizer.special))
    for sample in world_samples(WORLD_SETS["questions"], 120, seed=99):
        add_sample(builder, sample, tokenizer, packing, generator("test", sample.key))
    pack = builder.build()
    output = model(pack, model.encode_images(pack), torch.zeros(0))
    assert (output.text_logits.argmax(-1) == pack.label_ids).float().mean() > 0.8
    found = layers_report(BASE, fixed_set(24, stream="validation", tasks=TASKS[2:4]))["layers"]["understanding"]
    assert found[TASKS[3]]["auroc"][0] > 0.95
    assert found[TASKS[2]]["auroc"][1] > 0.8
