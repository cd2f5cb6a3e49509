"""EXIF orientation from a source to a training sample: applied, ignored, kept; older sets."""

import io
import json

import numpy as np
import pytest
import torch
from data_helpers import encode
from PIL import Image

from scone_pl.data.convert import ConvertConfig, convert
from scone_pl.data.decoding import decode_rgb, orientation_of
from scone_pl.data.inputs import open_input
from scone_pl.data.jsonl import JsonlPrompts
from scone_pl.data.packing import PackingConfig, ResizeLimits, prepare_sample, sample_layout
from scone_pl.data.prompts import read_requests
from scone_pl.data.shards import ShardSet
from scone_pl.data.statistics import contact_sheet
from scone_pl.data.verify import verify_shards
from scone_pl.errors import UserError

SIZE = {"apply": (32, 48), "ignore": (48, 32)}


def turned(format="PNG", orientation=6):
    """48 x 32 stored, shown as 32 x 48; its upper left corner is red as stored."""
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :24, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, exif=exif)
    return file.getvalue()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.png").write_bytes(turned())
    (folder / "b.jpg").write_bytes(turned("JPEG"))
    (folder / "c.png").write_bytes(encode(20, 10))
    line = {"references": ["a.png", "c.png"], "target": "b.jpg", "instruction": "turn"}
    (folder / "x.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def shards_of(source, output, **config):
    convert(open_input(str(source)), output, ConvertConfig(**config), progress=False)
    return ShardSet(output)


@pytest.mark.parametrize("reencode", [None, "png", "jpeg", "webp"])
@pytest.mark.parametrize("rule", ["apply", "ignore"])
def test_conversion_keeps_what_a_viewer_shows(source, tmp_path, rule, reencode):
    shards = shards_of(source, tmp_path / "out", exif_orientation=rule, reencode=reencode)
    assert shards.manifest.exif_orientation == rule
    assert (shards.index[0].references, shards.index[0].target) == ((SIZE[rule], (20, 10)), SIZE[rule])
    sample = shards.read(0)
    kept = reencode is None or rule == "ignore"
    for data in (sample.references[0], sample.target):
        assert orientation_of(data) == (6 if kept else 1)
        assert decode_rgb(data).size == SIZE["apply"]
        assert np.abs(np.asarray(decode_rgb(data)).astype(int) - decode_rgb(turned()))[2:14, -14:-2].max() < 40
    assert verify_shards(tmp_path / "out", progress=False).faults.total == 0
    assert contact_sheet(tmp_path / "out").width > 0


def test_shrinking_keeps_what_a_viewer_shows(source, tmp_path):
    for rule, size in (("apply", (16, 24)), ("ignore", (24, 16))):
        shards = shards_of(source, tmp_path / rule, exif_orientation=rule, shrink=24)
        assert shards.index[0].references[0] == size
        assert decode_rgb(shards.read(0).references[0]).size == (16, 24)


def test_sets_without_the_rule_have_sizes_as_stored(source, tmp_path):
    shards_of(source, tmp_path / "out", exif_orientation="ignore")
    assert "exif_orientation" not in json.loads((tmp_path / "out/manifest.json").read_text())
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/manifest.json").write_text(json.dumps({**manifest, "exif_orientation": "sometimes"}))
    with pytest.raises(UserError, match="exif_orientation 'sometimes'"):
        ShardSet(tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text(json.dumps({**manifest, "exif_orientation": "apply"}))
    assert verify_shards(tmp_path / "out", progress=False).faults.counts["index differs"] == 1


@pytest.mark.parametrize("pixels", ["exact", "fast"])
@pytest.mark.parametrize("stored", ["apply", "ignore"])
@pytest.mark.parametrize("rule", ["apply", "ignore"])
def test_training_turns_by_its_own_rule_and_packs_by_either(
    source, tmp_path, sequence_format, tokenizer, stored, rule, pixels
):
    shards = shards_of(source, tmp_path / "out", exif_orientation=stored)
    packing = PackingConfig(
        instruction_dropout=0.0,
        vae_resize=ResizeLimits(
            max_size=sequence_format.latent_stride * sequence_format.latent_positions_per_side, min_size=8
        ),
        vit_resize=ResizeLimits(
            max_size=sequence_format.vit_patch_size * sequence_format.vit_positions_per_side, min_size=8
        ),
        exif_orientation=rule,
        pixels=pixels,
    )
    ready = prepare_sample(shards.read(0), sequence_format, tokenizer, packing, np.random.default_rng(0))
    for image in (ready.references[0].vae, ready.references[0].vit, ready.target):
        height, width = image.shape[1:]
        assert (height > width) == (rule == "apply")
        right = image[0, : height // 4, -(width // 4) :].float().mean()
        left = image[0, : height // 4, : width // 4].float().mean()
        assert (right > left) == (rule == "apply")
    vae, vit = packing.resizes(sequence_format)
    lengths = [
        *(
            (i.shape[1] // s) * (i.shape[2] // s) + 2
            for r in ready.references
            for i, s in ((r.vae, vae.stride), (r.vit, vit.stride))
        ),
        len(ready.ids) + 2,
        (ready.target.shape[1] // vae.stride) * (ready.target.shape[2] // vae.stride) + 2,
    ]
    assert list(sample_layout(shards.index[0], sequence_format, tokenizer, packing)) == lengths


@pytest.mark.parametrize("rule", ["apply", "ignore"])
def test_prompts_turn_by_the_rule(source, sequence_format, tokenizer, rule):
    record = {"key": "a", "instruction": "a", "input_images": ["b.jpg"]}
    (source / "prompts.jsonl").write_text(json.dumps(record))
    requests = read_requests([source / "prompts.jsonl"])
    (batch,) = JsonlPrompts(requests, sequence_format, tokenizer, exif_orientation=rule)
    assert batch.failure is None
    height, width = batch.sequence.images[0].shape[-2:]
    assert (height > width) == (rule == "apply")


def test_an_image_without_orientation_is_the_same_by_either_rule():
    data = encode(24, 16)
    one, two = (np.asarray(decode_rgb(data, exif_orientation=rule)) for rule in ("apply", "ignore"))
    assert torch.equal(torch.from_numpy(one.copy()), torch.from_numpy(two.copy()))
