"""Pipelines without any model: near-duplicates, leaks, draws, cut-outs; resumed, in parts, and as shards."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from pool_files import encoded, items, pixels, save, state, uno_row, write_config, write_list
from running import ROOT
from tiny_checkpoints import write_folder

from scone_pl.__main__ import main
from scone_pl.construct.steps.cutouts import cut_out
from scone_pl.data.decoding import decode_rgb
from scone_pl.data.sample import BrokenSampleError
from scone_pl.data.shards import ShardSet


def run(*args: str) -> None:
    assert main(["construct", *args]) == 0


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["construct", *args]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Any]:
    """Eight pairs; number 8 repeats 0 at another size and brightness, 9 shows a benchmark's image mirrored."""
    rows = [uno_row(i, tmp_path) for i in range(10)]
    for which in (1, 2):
        copy = pixels(which, side=48).resize((96, 90))
        save(ImageEnhance.Brightness(copy).enhance(1.04), tmp_path / f"images/8_{which}.png")
    leak = pixels(500)
    save(leak, tmp_path / "benchmark/deep/image.png")
    save(ImageOps.mirror(leak).resize((80, 80)), tmp_path / "images/9_1.png")
    write_list(
        [{"instruction": "A cat runs through the garden number 7 quickly today."}], tmp_path / "benchmark/a.json"
    )
    rows[7]["caption"]["img_path2"] = "A cat runs through the garden number 7 quickly today, too."
    write_list(rows, tmp_path / "labels/a.json")
    return {"name": "uno", "path": str(tmp_path / "labels"), "image_root": str(tmp_path), "license": "cc0"}


def test_duplicates_and_leaks_are_rejected_whole_or_in_parts(
    tmp_path: Path, pool: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        {"step": "quality", "min_side": 40, "min_sharpness": 0},
        {"step": "duplicates"},
        {"step": "decontaminate", "benchmarks": [str(tmp_path / "benchmark")]},
        {"step": "draw", "samples": 9, "by": ["pool"]},
    ]
    config = write_config(tmp_path / "c.yaml", pools=[pool], steps=steps)
    run("plan", "--config", config)
    assert "20 entries in 1 pools, 20 chosen" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    run("run", "--config", config)
    assert state(tmp_path, "duplicates").reasons == {"near-duplicate": 2}
    assert state(tmp_path, "decontaminate").reasons == {"image of a benchmark": 2, "text of a benchmark": 1}
    assert state(tmp_path, "draw").kept == 9
    shards = ShardSet(tmp_path / "out/shards/samples")
    assert len(shards) == 9
    assert shards.read(0).metadata["license"] == "cc0"
    run("sheet", "--config", config)
    page = (tmp_path / "out/sheet.html").read_text()
    assert "near-duplicate" in page
    assert "is nearly" in page
    assert (tmp_path / "out/sheets/decontaminate.png").is_file()

    # The same bytes from three tasks, merged; and with another draw, nothing else is run again.
    kept = [file.read_bytes() for file in sorted((tmp_path / "out/shards/samples").glob("[!.]*"))]
    shutil.move(tmp_path / "out", tmp_path / "whole")
    for _ in range(4):
        for task in range(3):
            run("run", "--config", config, "--tasks", "3", "--task", str(task))
        run("merge", "--config", config)
        if (tmp_path / "out/shards/samples/manifest.json").is_file():
            break
    assert [file.read_bytes() for file in sorted((tmp_path / "out/shards/samples").glob("[!.]*"))] == kept
    before = (tmp_path / "out/steps/02-duplicates/state.json").stat().st_mtime_ns
    steps[3]["samples"] = 4
    run("run", "--config", write_config(tmp_path / "c.yaml", pools=[pool], steps=steps))
    assert len(ShardSet(tmp_path / "out/shards/samples")) == 4
    assert (tmp_path / "out/steps/02-duplicates/state.json").stat().st_mtime_ns == before


def test_what_counts_as_a_duplicate(tmp_path: Path) -> None:
    """Another reference with the same target is a sample of its own; the same question with another target is not."""
    first, other, third = (uno_row(i, tmp_path) for i in (0, 1, 2))
    same_target = {**first, "img_path1": other["img_path1"], "caption": {"img_path2": "Put a horse onto a small boat."}}
    same_question = {**first, "img_path2": third["img_path2"]}
    swapped = {**first, "img_path1": first["img_path2"], "img_path2": first["img_path1"]}
    swapped["caption"] = {"img_path1": "Some other words.", "img_path2": "And again some other words."}
    save(pixels(1).resize((90, 90)), tmp_path / "images/bigger.png")
    copy = {**first, "img_path2": "images/bigger.png"}
    write_list([first, same_target, same_question, swapped, copy], tmp_path / "a.json")
    config = write_config(
        tmp_path / "c.yaml", pools=[{"name": "p", "path": str(tmp_path / "a.json")}], steps=[{"step": "duplicates"}]
    )
    run("run", "--config", config)
    kept = [int(item["key"][-9:]) for item in items(tmp_path, "duplicates")]
    assert kept == [0, 1, 2]
    reasons = state(tmp_path, "duplicates").reasons
    assert reasons["target nearly a reference"] == 2


def test_limit_sample_and_several_outputs(tmp_path: Path, pool: dict[str, Any]) -> None:
    steps = [{"step": "duplicates"}, {"step": "draw", "samples": 3, "name": "few", "input": "uno"}]
    config = write_config(
        tmp_path / "c.yaml", pools=[pool], steps=steps, outputs={"all": "duplicates", "some": ["few"]}
    )
    run("run", "--config", config, "--limit", "6")
    assert (state(tmp_path, "pools").read, state(tmp_path, "few").kept) == (6, 3)
    assert (len(ShardSet(tmp_path / "out/shards/all")), len(ShardSet(tmp_path / "out/shards/some"))) == (6, 3)
    run("run", "--config", config, "--sample", "7")
    assert state(tmp_path, "pools").read == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pools": []}, "pools: give at least one"),
        ({"pools": [{"name": "a", "path": "x", "layuot": "uno"}]}, "unknown key layuot; did you mean layout?"),
        ({"pools": [{"name": "a/b", "path": "x"}]}, "must be 1 to"),
        ({"pools": [{"name": "a", "path": "/absent"}]}, "/absent"),
        ({"steps": [{"step": "qualty"}]}, "no step 'qualty'; did you mean quality?"),
        ({"steps": [{"step": "quality", "min_side": "big"}]}, "min_side is 'big'; it must be a whole number"),
        ({"steps": [{"step": "quality", "max_aspect": 0.5}]}, "max_aspect is 0.5"),
        ({"steps": [{"step": "draw"}]}, "samples is missing"),
        ({"steps": [{"step": "draw", "samples": 1, "input": "x"}]}, "input 'x' is none of"),
        ({"steps": [{"step": "quality"}, {"step": "quality"}]}, "two steps or pools are called quality"),
        ({"steps": [{"step": "consistency"}]}, "vlm is 'vlm', not in `models`"),
        ({"steps": [{"step": "decontaminate"}]}, "benchmarks"),
        ({"steps": [{"step": "decontaminate", "benchmarks": "/absent"}]}, "/absent: no such folder"),
        ({"models": {"vlm": {"base_url": "x"}}}, "models.vlm: model.base_url must look like"),
        ({"outputs": {"a": "nothing"}}, "outputs.a: 'nothing' is no step"),
        ({"limit": 3, "sample": 4}, "not both"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_a_mistake_in_the_file_is_one_line_before_anything_is_written(
    tmp_path: Path, pool: dict[str, Any], changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", **{"pools": [pool], "steps": [], **changes})
    assert message in error_of(capsys, "run", "--config", config)
    assert not (tmp_path / "out").exists()


def subject(seed: int, *, alpha: bool) -> Image.Image:
    """A disc with stripes, on nothing or on white."""
    y, x = np.mgrid[:120, :120]
    stripes = np.random.default_rng(seed).integers(0, 200, (120 // 8 + 1, 3))[(x + seed * y) // 8 % 15]
    inside = (x - 60) ** 2 + (y - 60) ** 2 < 45**2
    rgba = np.dstack([np.where(inside[..., None], stripes, 255), np.where(inside, 255, 0 if alpha else 255)])
    return Image.fromarray(rgba.astype(np.uint8))


def test_composing_makes_candidates_with_exact_boxes_and_names(tmp_path: Path) -> None:
    for i, name in enumerate(("dog", "dog2", "red_vase", "clock", "boot")):
        for photo in (0, 1):
            save(subject(10 * i + photo, alpha=photo == 0), tmp_path / f"photos/{name}/{photo}.png")
    save(pixels(3, 120), tmp_path / "photos/boot/2.png")  # no plain background
    config = write_config(
        tmp_path / "c.yaml",
        pools=[{"name": "mine", "path": str(tmp_path / "photos"), "layout": "subjects", "license": "cc0"}],
        steps=[{"step": "compose", "side": 200, "intra": 1.0}],
    )
    run("run", "--config", config)
    assert state(tmp_path, "compose-choice").reasons == {"no cut-out": 1}
    made = items(tmp_path, "compose")
    assert len(made) == 10
    assert Counter(item["metadata"]["case"] for item in made) == {"intra": 4, "cross": 6}
    shards = ShardSet(tmp_path / "out/shards/samples")
    for i in range(len(shards)):
        sample = shards.read(i)
        assert sample.kind == "multi"
        assert sample.candidates is not None
        (group,) = sample.candidates
        assert 2 <= len(group) <= 3
        assert [one["license"] for one in sample.metadata["construct"]["compose"]["beside"]] == ["cc0"] * (
            len(group) - 1
        )
        assert sum(candidate.is_target for candidate in group) == 1
        target = next(candidate for candidate in group if candidate.is_target)
        assert target.name in sample.instruction
        names = [candidate.name for candidate in group]
        if sample.metadata["case"] == "intra":
            order = sorted(group, key=lambda candidate: candidate.box[0])
            assert names == ["dog", "dog"]
            assert ("on the left", "on the right")[order.index(target)] in sample.instruction
        else:
            assert len(set(names)) == len(names)
        image = np.asarray(decode_rgb(sample.references[0])).astype(int)
        for candidate in group:
            left, top, right, bottom = (round(200 * value) for value in candidate.box)
            inner = image[top:bottom, left:right]
            assert inner.std() > 20  # stripes
            for row in (max(top - 4, 0), min(bottom + 3, 199)):
                assert np.abs(np.diff(image[row, left:right], axis=0)).max() < 8  # a soft background


def disc(colour: int, spots: int = 0, dust: int = 0) -> bytes:
    """A smooth-edged disc on white, with dark spots within, and a dot beside it."""
    y, x = np.mgrid[:256, :256]
    alpha = np.clip(80.5 - np.hypot(x - 128, y - 128), 0, 1)
    grey = colour * alpha + 255 * (1 - alpha)
    for number in range(spots):
        grey[np.hypot(x - 80 - 40 * (number % 3), y - 90 - 40 * (number // 3)) < 14] = 20
    grey[(x > 240 - dust) & (x < 240) & (y > 240 - dust) & (y < 240)] = 20
    return encoded(Image.fromarray(grey.round().astype(np.uint8)).convert("RGB"))


def test_cut_outs_are_whole_and_without_a_halo_or_not_made() -> None:
    clean, dusty = cut_out(disc(60)), cut_out(disc(60, dust=6))
    assert clean.size == dusty.size
    assert 157 <= min(clean.size) <= max(clean.size) <= 161
    pixels = np.asarray(clean)
    assert pixels[..., :3][pixels[..., 3] > 20].max() <= 62  # nothing of the white around it
    for colour, spots in ((255, 9), (240, 9), (225, 6), (228, 0)):
        with pytest.raises(BrokenSampleError, match=r"colour of the background|covers"):
            cut_out(disc(colour, spots))


def test_constructed_shards_train(tmp_path: Path) -> None:
    for i, name in enumerate(("dog", "vase")):
        for photo in (0, 1):
            save(subject(10 * i + photo, alpha=False), tmp_path / f"photos/{name}/{photo}.png")
    pools = [{"name": "mine", "path": str(tmp_path / "photos"), "layout": "subjects"}]
    steps = [{"step": "compose", "side": 128}]
    run("run", "--config", write_config(tmp_path / "c.yaml", pools=pools, steps=steps))
    recipe = ["fit", "--config", f"{ROOT}/experiments/mini/stage2.yaml", "--chain", "null", "--trainer.max_steps", "2"]
    recipe += ["--model.init_args.init_from", str(write_folder(tmp_path / "base")), "--data.val", "[]"]
    recipe += ["--model.init_args.bridge", "{source_layer: 0, first_masked_layer: 1, last_masked_layer: 1}"]
    recipe += ["--data.train", f"[{{path: {tmp_path}/out/shards/samples}}]", "--data.num_workers", "0"]
    size = "{max_size: 8, min_size: 8}"
    recipe += ["--data.packing.vae_resize", size, "--data.packing.vit_resize", size]
    recipe += ["--output_dir", str(tmp_path / "run"), "--trainer.enable_progress_bar", "false"]
    assert main(recipe) == 0
    assert (tmp_path / "run/weights/llm_config.json").is_file()


def test_a_changed_image_is_skipped_and_counted(
    tmp_path: Path, pool: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", pools=[pool], steps=[{"step": "draw", "samples": 100}])
    run("run", "--config", config)
    save(pixels(900), tmp_path / "images/3_1.png")
    shutil.rmtree(tmp_path / "out/shards")
    run("run", "--config", config)
    assert "2 image changed" in capsys.readouterr().out
    assert len(ShardSet(tmp_path / "out/shards/samples")) == 18
