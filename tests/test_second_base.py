"""SenseNova-U1 and U1.5: agreement with the public code, sizes, and that nothing outside of the base says its name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import scone_pl
from scone_pl import flow
from scone_pl.__main__ import main
from scone_pl.checkpoints.folder import read_config
from scone_pl.checkpoints.model import from_pretrained, save_pretrained
from scone_pl.data.packing import PackingConfig
from scone_pl.data.tokenizer import Tokenizer
from scone_pl.errors import UserError
from scone_pl.model.bases import BASES, PRESETS
from scone_pl.model.builder import SequenceBuilder
from scone_pl.model.initialize import random_model
from scone_pl.model.layout import ReferenceImages
from scone_pl.model.neo.network import IMAGENET_MEAN, IMAGENET_STD, Neo
from scone_pl.model.sequence import SpecialTokens
from scone_pl.model.vae import latents_to_tokens
from scone_pl.parity.neo import ParityCase
from scone_pl.parity.neo.inputs import byte_tokenizer
from scone_pl.sampling.guidance import RULES
from scone_pl.sampling.settings import SamplingConfig

GOLDEN = Path(__file__).parent / "golden/neo"
U15 = GOLDEN / "u1_5"
SIZES = json.loads((GOLDEN / "published_sizes.json").read_text())
PACKAGE = Path(scone_pl.__file__).parent


@pytest.mark.parametrize("attention", ["split", "dense"])
def test_everything_in_the_golden_folder_agrees(attention: str) -> None:
    comparisons = list(ParityCase(U15, attention=attention, device="cpu").compare())
    assert [c.name for c in comparisons if not c.agrees] == []
    assert len(comparisons) == 62


def test_exactly_the_wrong_numbers_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "u1_5"
    shutil.copytree(U15, folder)
    wrong = ["sample0.ids", "sample0.prefix.key.0", "sample0.bridge.blocked", "infer.sample0.both.image"]
    tensors = load_file(folder / "expected.safetensors")
    for name in wrong:
        flat = tensors[name].flatten()
        flat[3] = ~flat[3] if flat.dtype == torch.bool else flat[3] + 1
    save_file(tensors | {"sample0.new": torch.zeros(1)}, folder / "expected.safetensors")
    reported = {c.name for c in ParityCase(folder, attention="split", device="cpu").compare() if not c.agrees}
    assert reported == {*wrong, "sample0.new: not compared"}


def test_published_sizes() -> None:
    special = SpecialTokens(0, 1, 2, 3)
    for case in SIZES["smart_resize"]:
        sequence_format = PRESETS["neo_u15_8b"]().sequence_format(special)
        packing = PackingConfig.for_inference(sequence_format)
        _, resize = packing.resizes(sequence_format, references=case["num_images"])
        assert list(resize.size(case["width"], case["height"])[::-1]) == case["result_hw"], case
    for name, theirs in SIZES["time_grids"].items():
        shift, steps = re.fullmatch(r"shift([\d.]+)_steps(\d+)", name).groups()  # type: ignore[union-attr]  # no match fails the test
        torch.testing.assert_close(1 - flow.time_grid(int(steps), float(shift)), torch.tensor(theirs))
    with torch.device("meta"):
        models = {name: PRESETS[name]().build() for name in ("neo_u1_8b", "neo_u15_8b")}
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert counts == {"neo_u1_8b": 17_552_340_992, "neo_u15_8b": 17_532_854_464}
    assert len(models["neo_u15_8b"].state_dict()) == 1116
    scales = {tokens: 8 * (int(tokens) / 4096) ** 0.5 for tokens in SIZES["noise_scales"]}
    assert scales == SIZES["noise_scales"]


def test_positions_of_the_published_case() -> None:
    case = SIZES["thw_case"]
    names = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<IMG_CONTEXT>", "<img>", "</img>")
    tokenizer = byte_tokenizer({name: 256 + i for i, name in enumerate(names)}, "")
    layout = read_config(U15).sequence_format(tokenizer.special)
    builder, ids = SequenceBuilder(layout), [i for i in case["ids"] if i != 260]
    builder.begin_sample()
    builder.add_words(ids[:7], ())
    builder.add_vit(torch.zeros(3, 64, 96), reference=0)
    builder.add_words(ids[7:11], ())
    builder.add_vit(torch.zeros(3, 64, 64), reference=1)
    builder.add_words(ids[11:], ())
    assert builder.build().axis_positions.T.tolist() == case["indexes"]


def test_the_interval_is_open_and_one_from_the_noise_on_covers_all_steps() -> None:
    rule = RULES["three_contexts"]

    def guided(low: float, high: float) -> list[bool]:  # in the published direction: 0 = noise
        config = SamplingConfig(guidance_interval=(1 - high, 1 - low))
        return [rule.guided_at(config, 1 - torch.tensor(t)) for t in (0.0, 0.25, 0.5, 0.75)]

    assert guided(0.25, 0.75) == [False, False, True, False]
    assert guided(0.0, 0.25) == [True] * 4
    assert guided(0.1, 0.6) == [False, True, True, False]


def test_guidance_needs_only_the_contexts_of_its_scales() -> None:
    rule, full, bare, nothing = RULES["three_contexts"], *torch.randn(3, 1, 4, 6).unbind()
    for a, b in ((4.0, 1.0), (4.0, 2.0), (3.0, 3.0)):
        config = SamplingConfig(guidance_scale=a, image_guidance_scale=b, guidance_rescale="none")
        needs = rule.needs(config, negative=False)
        given = [x if needed else None for x, needed in zip((bare, nothing), needs, strict=True)]
        wanted = nothing + a * (full - bare) + b * (bare - nothing)
        torch.testing.assert_close(rule.guide(config, full, *given), wanted)
    assert rule.needs(SamplingConfig(image_guidance_scale=1.0), negative=False) == (True, False)
    assert rule.needs(SamplingConfig(image_guidance_scale=4.0), negative=False) == (False, True)


def test_a_folder_is_written_as_it_was_read(tmp_path: Path) -> None:
    config = read_config(U15)
    model = from_pretrained(U15)
    save_pretrained(model, tmp_path / "again")
    assert read_config(tmp_path / "again") == config
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", U15))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    mlp = dataclasses.replace(config, head="mlp", head_width=40, noise_scale_max=8.0, latent_patch_size=4)
    save_pretrained(mlp.build(), tmp_path / "mlp")
    assert read_config(tmp_path / "mlp") == mlp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_schedule": "dynamic"}, "time_schedule is 'dynamic', but only standard"),
        ({"use_pixel_head": False}, "use_pixel_head false, but the weights lack fm_modules.fm_head.0.weight"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"P_std": "x"}, "P_std is 'x'"),
        ({"llm_config": []}, "llm_config must be an object"),
        ({"vision_config": {}}, "lacks the key vision_config.hidden_size"),
    ],
)
def test_configs_that_are_not_implemented_are_one_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    shutil.copytree(U15, tmp_path / "folder")
    file = tmp_path / "folder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=re.escape(message)):
        read_config(tmp_path / "folder")


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny U1.5 with a tokenizer and a system message, as a download has them."""
    folder = tmp_path_factory.mktemp("second") / "u1_5"
    shutil.copytree(U15, folder)
    expected = json.loads((folder / "expected.json").read_text())
    message = expected["system_message"]
    byte_tokenizer(expected["special_tokens"], message).save(folder)
    (folder / "system_message.txt").write_text(message)
    config = json.loads((folder / "config.json").read_text())
    config["system_message_sha256"] = hashlib.sha256(message.encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_generate(whole_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (200, 300), "red").save(tmp_path / "red.png")
    args = ["--checkpoint", str(whole_folder), "--instruction", "Make it blue.", "--image", str(tmp_path / "red.png")]
    args += ["--num_inference_steps", "2", "--height", "64", "--width", "96", "--dtype", "float32", "--device", "cpu"]
    bridge = '{"source_layer": 1, "first_masked_layer": 2, "last_masked_layer": 5, "quantile": 0.5}'
    args += ["--bridge", bridge, "--bridge_image", str(tmp_path / "maps.png"), "--output", str(tmp_path / "out.png")]
    assert main(["generate", *args]) == 0
    assert Image.open(tmp_path / "out.png").size == (96, 64)
    assert (tmp_path / "maps.png").exists()


def test_the_system_message_is_checked(whole_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(whole_folder, folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.special == pickle.loads(pickle.dumps(tokenizer)).special  # noqa: S301 (our own)
    (folder / "system_message.txt").write_text("Edit images.\n")
    assert Tokenizer.from_folder(folder).special == tokenizer.special, "an editor's last newline"
    (folder / "system_message.txt").write_text("Edit nothing.")
    with pytest.raises(UserError, match="is not the message that belongs to these weights"):
        Tokenizer.from_folder(folder)
    (folder / "system_message.txt").unlink()
    with pytest.raises(UserError, match=r"system_message.txt: missing; .* system message of its public code"):
        Tokenizer.from_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 1}))
    shutil.copy(whole_folder / "system_message.txt", folder)
    with pytest.raises(UserError, match="eos_token_id 1"):
        Tokenizer.from_folder(folder)


def test_where_references_go(whole_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(whole_folder)
    layout = read_config(whole_folder).sequence_format(tokenizer.special).layout
    image, special = ReferenceImages(None, torch.zeros(3, 32, 32)), tokenizer.special

    def shown(text: str, references: list[ReferenceImages]) -> str:
        builder = SequenceBuilder(read_config(whole_folder).sequence_format(special))
        builder.begin_sample()
        layout.add_context(builder, references, tokenizer.encode(text))
        names = {special.start_image: "[", special.end_image: "]"}
        pieces = [names.get(i, chr(i) if i < 256 else "|") for i in builder.build().text_ids.tolist()]
        lengths = layout.split_lengths([(0, 1)] * len(references), tokenizer.encode(text), None, [])
        assert sum(lengths) == builder.length or any(r.vit is None for r in references)
        return "".join(pieces).partition("user")[2].partition("|\n|assistant")[0]

    gone = ReferenceImages(None, None)
    assert shown("mix", [image]) == "\n[]\nmix"
    assert shown("mix", [image, image]) == "\nImage-1:[]\nImage-2:[]\nmix"
    assert shown("mix <image> in", [image, image]) == "\n[]\nmix [] in"
    assert shown("mix", [image, gone]) == "\nImage-1:[]\nmix"
    assert shown("mix", []) == "\nmix"
    with pytest.raises(UserError, match="2 <image> placeholders for 1 reference"):
        shown("<image> and <image>", [image])


def test_random_weights_of_small_patches_start_as_a_copy() -> None:
    """Both embedders make the same token of the same pixels, and the head predicts half of a noisy one."""
    model = random_model(PRESETS["mini_neo"](), 0)
    assert isinstance(model, Neo)
    pixels = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        seen = model.vision_model(((pixels + 1) / 2 - mean) / std)
        noisy = model.fm_modules["vision_model_mot_gen"](pixels)
        image = model.fm_modules["fm_head"](noisy)
    assert torch.allclose(seen, noisy, atol=1e-5)
    of_both = torch.stack([image.flatten(), latents_to_tokens(pixels, 4).flatten()])
    assert torch.corrcoef(of_both)[0, 1] > 0.95
    attention = model.language_model.model.layers[1].self_attn
    copied = attention.o_proj_mot_gen.weight @ attention.v_proj.weight  # one head's values to itself, and the other's
    assert copied.diagonal().mean() > 0.2, "it adds what it reads of the understanding expert"


def test_only_the_registry_names_the_second_base() -> None:
    own = re.compile(r"(^|/)neo(/|\.py$)")
    name = re.compile(r"\b[Nn]eo|Neo\b|NEO|\bU1\b|SenseNova|fm_modules|vision_model_mot_gen")
    files = [f.relative_to(PACKAGE).as_posix() for f in PACKAGE.rglob("*.py")]
    found = {f for f in files if not own.search(f) and name.search((PACKAGE / f).read_text())}
    assert found == {"model/bases.py"}
    assert len(BASES) == 2
