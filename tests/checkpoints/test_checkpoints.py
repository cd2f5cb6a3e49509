"""Checkpoint folders in and out: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scone_pl.checkpoints import model as checkpoints
from scone_pl.checkpoints.model import from_pretrained, read_config, save_pretrained
from scone_pl.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden/parity"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint"))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN), tmp_path / "out", assets_from=GOLDEN, training={"steps": 3})
    for name in ("model.safetensors", "ae.safetensors"):
        before, after = load_file(GOLDEN / name), load_file(tmp_path / "out" / name)
        assert before.keys() == after.keys()
        # The position tables are recomputed, so they agree to rounding; weights agree to the bit.
        for key, tensor in before.items():
            tolerance = 1e-6 if key.endswith("pos_embed") else 0
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=tolerance)
    assert read_config(tmp_path / "out") == read_config(GOLDEN)
    assert json.loads((tmp_path / "out/training.json").read_text()) == {"steps": 3}


def test_sizes_come_from_configs_and_shapes() -> None:
    config = read_config(GOLDEN)
    assert (config.vit.num_layers, config.vit.positions_per_side) == (2, 10)
    assert (config.latent_positions_per_side, config.latent_patch_size, config.latent_token_size) == (8, 2, 16)
    assert (config.autoencoder.downsample, config.latent_stride, config.decoder.head_dim) == (8, 16, 8)


def _spoil(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["vae2llm.bias"]
    elif change == "unexpected":
        tensors["ema_decay"] = torch.zeros(1)
    elif change == "misshapen":
        tensors["connector.fc1.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("missing", "missing vae2llm.bias"),
        ("unexpected", "unexpected ema_decay"),
        ("misshapen", r"connector.fc1.weight has shape \[3, 3\], the model needs \[32, 24\]"),
    ],
)
def test_keys_and_shapes_are_strict(folder: Path, change: str, text: str) -> None:
    _spoil(folder, change)
    with pytest.raises(UserError, match=text) as error:
        from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint folder"):
        read_config(tmp_path / "nowhere")
    (folder / "ae.safetensors").unlink()
    with pytest.raises(UserError, match=r"ae\.safetensors: missing"):
        from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\x07 not safetensors")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights; expected one of ema"):
        from_pretrained(folder)
    (folder / "llm_config.json").write_text("{")
    shutil.copy(GOLDEN / "model.safetensors", folder)
    with pytest.raises(UserError, match=r"llm_config\.json: not JSON"):
        from_pretrained(folder)


def test_ema_weights_come_first_and_an_index_names_many_files(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v + 1 if k == "vae2llm.bias" else v for k, v in tensors.items()}, folder / "ema.safetensors")
    assert from_pretrained(folder).vae2llm.bias.equal(tensors["vae2llm.bias"] + 1)
    (folder / "ema.safetensors").unlink()
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in parts.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert from_pretrained(folder).vae2llm.bias.equal(tensors["vae2llm.bias"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_pretrained(GOLDEN)
    save_pretrained(model, tmp_path / "out", training={"steps": 1})

    def full_disk(*args: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "config_files", full_disk)
    with pytest.raises(UserError, match="No space"):
        save_pretrained(model, tmp_path / "out", training={"steps": 2})
    assert json.loads((tmp_path / "out/training.json").read_text()) == {"steps": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_bfloat16_round_trip(tmp_path: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN, dtype=torch.bfloat16), tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")["llm2vae.weight"]
    assert stored.dtype == torch.bfloat16
    assert stored.equal(load_file(GOLDEN / "model.safetensors")["llm2vae.weight"].bfloat16())
