"""No key of a checkpoint folder's configs passes unseen: obeyed, one value of it implemented, harmless, or named."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import write_folder

from scone_pl.checkpoints.keys import FIXED, HARMLESS, OBEYED
from scone_pl.checkpoints.model import config_files, read_config
from scone_pl.errors import UserError
from scone_pl.model.config import bagel_7b

FILES = {"llm": "llm_config.json", "vit": "vit_config.json", "vae": "vae_config.json", "root": "config.json"}
ROOT = {
    "model_type": "bagel",
    "connector_act": "gelu_pytorch_tanh",
    "interpolate_pos": False,
    "latent_patch_size": 2,
    "max_latent_size": 8,
    "timestep_shift": 1.0,
    "visual_gen": True,
    "visual_und": True,
    "vit_max_num_patch_per_side": 10,
    "llm_config": {"layer_module": "Qwen2MoTDecoderLayer", "qk_norm": True},
    "vit_config": {"rope": False},
}
ODD = [None, True, False, "32", "", [], {}, [1], {"a": 1}, -1, 0, 0.5, 10**12, 10**400, float("nan"), float("inf"), "é"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a `config.json`."""
    folder = write_folder(tmp_path_factory.mktemp("keys") / "folder")
    (folder / "config.json").write_text(json.dumps(ROOT))
    return folder


@pytest.fixture
def folder(base: Path) -> Iterator[Path]:
    """The same folder for all tests; its JSON files may be changed."""
    before = {name: (base / name).read_bytes() for name in FILES.values()}
    yield base
    for name, content in before.items():
        (base / name).write_bytes(content)


def change(folder: Path, kind: str, key: str, value: Any) -> None:
    """Sets a key, below another with a dot."""
    file = folder / FILES[kind]
    content = json.loads(file.read_text())
    *above, last = key.split(".")
    inner = content
    for name in above:
        inner = inner.setdefault(name, {})
    inner[last] = value
    file.write_text(json.dumps(content))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_config(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", FILES)
def test_fixed_keys_have_the_implemented_value_or_are_refused(folder: Path, kind: str) -> None:
    expected = read_config(folder)
    original = (folder / FILES[kind]).read_bytes()
    for key, allowed in FIXED[kind].items():
        for value in (*allowed, *ODD, "other", 2.0):
            if (kind, key, value) == ("vae", "kind", "space_to_depth"):
                continue  # another autoencoder
            change(folder, kind, key, value)
            if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
                assert read_config(folder) == expected
            else:
                message = refused(folder)
                assert f"{FILES[kind]}: {key} is " in message
            (folder / FILES[kind]).write_bytes(original)


@pytest.mark.parametrize("kind", FILES)
def test_obeyed_keys_of_odd_values_are_refused_or_change_the_config(folder: Path, kind: str) -> None:
    expected = read_config(folder)
    content = json.loads((folder / FILES[kind]).read_text())
    free = {
        "separate_experts",
        "max_position_embeddings",
        "rope_theta",
        "rms_norm_eps",
        "layer_norm_eps",
        "scale_factor",
        "shift_factor",
    }
    of_several = {"hidden_size", "num_attention_heads", "ch", "ch_mult", "z_channels"}  # another key may be named
    for key in OBEYED[kind] - {"kind", "block_size"}:
        for value in ODD:
            change(folder, kind, key, value)
            message = None
            try:
                found = read_config(folder)
            except UserError as error:
                message = str(error)
            if message is None:
                noted = key.endswith("_config") and value == {"a": 1}
                same = value is None or (value == {} and key != "head_dim") or noted
                assert found == expected if same else key in free, (key, value)
            else:
                assert "\n" not in message
                assert FILES[kind] in message, (key, value, message)
                assert key in message or key in of_several, (key, value, message)
            (folder / FILES[kind]).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", FILES)
def test_harmless_keys_are_silent_and_others_named_once(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = read_config(folder)
    for key in HARMLESS[kind]:
        change(folder, kind, key, 3)
    with caplog.at_level(logging.INFO):
        assert read_config(folder) == expected
        assert caplog.messages == []
        change(folder, kind, f"novelty_{kind}", 3)
        for _ in range(2):
            assert read_config(folder) == expected
    assert len(caplog.messages) == 1
    assert f'{FILES[kind]}: "novelty_{kind}": unknown' in caplog.messages[0]


def test_rope_of_transformers_5(folder: Path) -> None:
    file = folder / "llm_config.json"
    content = json.loads(file.read_text())
    del content["rope_theta"]
    file.write_text(json.dumps(content))
    assert "lacks the key rope_theta" in refused(folder)
    for name in ("rope_parameters", "rope_scaling"):
        file.write_text(json.dumps({**content, name: {"rope_theta": 5e5, "rope_type": "default"}}))
        assert read_config(folder).decoder.rope_theta == 5e5
        for wrong in (
            {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0},
            {"rope_theta": 5e5, "type": "linear", "factor": 2.0},
            {"rope_theta": 5e5, "rope_type": "default", "mrope_section": [16, 24, 24]},
            {"rope_theta": "5e5", "rope_type": "default"},
        ):
            file.write_text(json.dumps({**content, name: wrong}))
            assert f"{name}." in refused(folder)
    file.write_text(json.dumps({**content, "rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}}))
    assert "rope_theta is 1000000.0 but rope_parameters.rope_theta is 500000.0; they must agree" in refused(folder)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("llm", "head_dim", 16),
        ("llm", "layer_types", ["sliding_attention"] * 2),
        ("llm", "vocab_size", 265),
        ("llm", "num_hidden_layers", 10**9),
        ("llm", "num_attention_heads", 8),
        ("llm", "num_key_value_heads", 4),
        ("vit", "image_size", 126),
        ("vit", "num_hidden_layers", 4),
        ("vit", "num_attention_heads", 5),
        ("vit", "patch_size", 16),
        ("vae", "downsample", 16),
        ("vae", "z_channels", 8),
        ("vae", "ch", 33),
        ("root", "latent_patch_size", 1),
        ("root", "max_latent_size", 32),
        ("root", "vit_max_num_patch_per_side", 70),
        ("root", "timestep_shift", 4.0),
        ("root", "llm_config.rope_theta", 1e4),
        ("root", "llm_config.hidden_act", "gelu"),
        ("root", "llm_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        ("root", "vit_config.patch_size", 16),
        ("root", "vae_config.z_channels", 16),
    ],
)
def test_what_contradicts_the_weights_or_another_file_is_named(folder: Path, kind: str, key: str, value: Any) -> None:
    change(folder, kind, key, value)
    message = refused(folder)
    assert FILES[kind] in message or (kind, key) == ("vae", "z_channels")


def test_a_published_folder_opens_without_noise(bagel_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With all that transformers and BAGEL write, the wrong table size of BAGEL's own `config.json` included."""
    llm = json.loads((bagel_folder / "llm_config.json").read_text()) | {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "rope_scaling": None,
        "sliding_window": 131072,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "_attn_implementation_autoset": True,
        "layer_types": ["full_attention"] * 28,
    }
    vit = json.loads((bagel_folder / "vit_config.json").read_text()) | {
        "attention_dropout": 0.0,
        "model_type": "siglip_vision_model",
        "num_channels": 3,
        "vision_use_head": False,
    }
    root = {**ROOT, "max_latent_size": 32, "vit_max_num_patch_per_side": 70, "llm_config": llm, "vit_config": vit}
    root["vae_config"] = {"z_channels": 16, "downsample": 8}
    try:
        for name, content in {"llm_config.json": llm, "vit_config.json": vit, "config.json": root}.items():
            (bagel_folder / name).write_text(json.dumps(content))
        with caplog.at_level(logging.INFO):
            assert read_config(bagel_folder) == bagel_7b()
        assert caplog.messages == []
    finally:
        (bagel_folder / "config.json").unlink()
        for name, content in config_files(bagel_7b()).items():
            (bagel_folder / name).write_text(json.dumps(content))


def test_every_key_that_is_written_is_known() -> None:
    for name, content in config_files(bagel_7b()).items():
        kind = next(kind for kind, file in FILES.items() if file == name)
        assert content.keys() <= OBEYED[kind] | FIXED[kind].keys() | HARMLESS[kind]
        assert not OBEYED[kind] & HARMLESS[kind]
