"""The folder format of SenseNova-U1 and U1.5: one `config.json`, weights, and the tokenizer's files.

Key names and values: docs/second_base.md. Published values that this code does not implement are refused, unknown keys
are logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scone_pl.checkpoints.tensor_files import WeightFiles
from scone_pl.data.neo import SYSTEM_FILE
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.config import DecoderConfig
from scone_pl.model.neo.config import POSITIONS, NeoConfig

_log = logging.getLogger(__name__)

CONFIG_FILES = ("config.json",)
OTHER_FILES = ("generation_config.json", "LICENSE")
PROMPT_FILES = (SYSTEM_FILE,)
PUBLISHED_FILES = CONFIG_FILES

_FIXED: dict[str, tuple[Any, ...]] = {
    "template": ("neo1_0",),
    "tie_word_embeddings": (False,),
    "downsample_ratio": (0.5,),
    "timestep_shift": (1.0,),
    "time_schedule": ("standard",),
    "noise_scale_mode": ("resolution",),
    "add_noise_scale_embedding": (True,),
    "extra_num_layers_post": (0,),
    "concat_time_token_num": (0,),
    "use_adaLN": (False,),
    "fm_head_layers": (1, 2),
    "quantization_config": (None,),
    "llm_config.tie_word_embeddings": (False,),
    "llm_config.model_type": ("qwen3",),
    "llm_config.hidden_act": ("silu",),
    "llm_config.attention_bias": (False,),
    "llm_config.attention_dropout": (0,),
    "llm_config.use_sliding_window": (False,),
    "llm_config.rope_scaling": (None,),
    "llm_config.max_position_embeddings_hw": (POSITIONS,),
    "llm_config.num_experts": (None,),
    "vision_config.model_type": ("neo_vision",),
    "vision_config.downsample_ratio": (0.5,),
    "vision_config.num_channels": (3,),
    "vision_config.max_position_embeddings_vision": (POSITIONS,),
}
"""Keys that affect the computation -> implemented values; a key may be absent."""
_READ = {
    *("model_type", "llm_config", "vision_config", "patch_size", "use_pixel_head", "noise_scale", "P_mean", "P_std"),
    *("noise_scale_base_image_seq_len", "noise_scale_max_value", "t_eps", "eos_token_id", "system_message_sha256"),
    *(f"llm_config.{key}" for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")),
    *(f"llm_config.{key}" for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")),
    *(f"llm_config.{key}" for key in ("rope_theta", "rope_theta_hw", "max_position_embeddings")),
    *(f"vision_config.{key}" for key in ("hidden_size", "llm_hidden_size", "patch_size", "rope_theta_vision")),
}
_HARMLESS = {
    *("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "pad_token_id", "bos_token_id"),
    # Of schedules and heads that these values of other keys leave unused; of sizes that sampling sets by itself.
    *("time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "fm_head_dim"),
    *("fm_head_mlp_ratio", "min_pixels", "max_pixels", "use_cache", "max_window_layers", "sliding_window"),
    *("eos_token_id", "initializer_range", "layer_types"),
}
_HEAD = "fm_modules.fm_head."


class _Keys:
    """Validated access to the keys of `config.json`, nested ones by a dot."""

    def __init__(self, file: Path) -> None:
        self.file, self.values = file, dict[str, Any]()
        for key, value in read_json(file, dict).items():
            if key in ("llm_config", "vision_config"):
                if not isinstance(value, dict):
                    raise UserError(f"{file}: {key} must be an object")
                self.values |= {f"{key}.{inner}": of_inner for inner, of_inner in value.items()}
            else:
                self.values[key] = value
        for key, allowed in _FIXED.items():
            value = self.values.get(key, allowed[0])
            if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
                wanted = " or ".join(map(str, allowed))
                raise UserError(f"{file}: {key} is {value!r:.80}, but only {wanted} is implemented")
        known = _READ | _FIXED.keys()
        unknown = [k for k in self.values if k not in known and k.rpartition(".")[2] not in _HARMLESS]
        if unknown:
            _log.warning("%s: %s: unknown here, not used", file, ", ".join(sorted(unknown)[:5]))

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value < 2**31:
            raise UserError(f"{self.file}: {key} is {value!r:.80}, but only a whole number from 1 will do")
        return value

    def number(self, key: str, default: float, *, positive: bool = True) -> float:
        """A finite number."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not abs(value) < 1e30 or (positive and value <= 0):
            kind = "positive number" if positive else "number"
            raise UserError(f"{self.file}: {key} is {value!r:.80}, but only a finite {kind} will do")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.file}: {key} is {value!r:.80}, but only true or false will do")
        return value

    def _get(self, key: str, default: Any) -> Any:
        if self.values.get(key) is None and default is None:
            raise UserError(f"{self.file}: lacks the key {key}")
        return self.values.get(key, default)


def left_out(folder: Path) -> Callable[[str], bool] | None:
    """Everything is read."""
    return None


def read_config(folder: Path, weights: WeightFiles) -> NeoConfig:
    """See `FolderFormat.read_config`."""
    keys = _Keys(folder / "config.json")
    sizes: dict[str, Any] = {ours: keys.integer(f"llm_config.{theirs}") for ours, theirs in _DECODER_SIZES.items()}
    patch = keys.integer("patch_size")
    convolutional = keys.flag("use_pixel_head", False)
    try:
        decoder = DecoderConfig(
            **sizes,
            rope_theta=keys.number("llm_config.rope_theta", 5e6),
            rope_theta_grid=keys.number("llm_config.rope_theta_hw", 1e4),
            rms_norm_eps=keys.number("llm_config.rms_norm_eps", 1e-6),
            max_position_embeddings=keys.integer("llm_config.max_position_embeddings", 262144),
            qkv_bias=False,
            generation_mark="_mot_gen",
        )
        config = NeoConfig(
            decoder=decoder,
            embedder_channels=keys.integer("vision_config.hidden_size"),
            latent_patch_size=2 * patch,
            head="convolutional" if convolutional else "mlp",
            head_width=_head_width(folder, weights, convolutional=convolutional),
            rope_theta_patches=keys.number("vision_config.rope_theta_vision", 1e4),
            noise_scale=keys.number("noise_scale", 1.0),
            noise_scale_tokens=keys.integer("noise_scale_base_image_seq_len", 64),
            noise_scale_max=keys.number("noise_scale_max_value", 8.0),
            smallest_time=keys.number("t_eps", 0.05),
            noise_logit_mean=-keys.number("P_mean", -0.8, positive=False),
            noise_logit_std=keys.number("P_std", 0.8),
            system_message_sha256=keys.values.get("system_message_sha256"),
        )
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{keys.file}: {error}") from None
    agreeing = {
        "llm_config.head_dim": decoder.head_dim,
        "vision_config.patch_size": patch,
        "vision_config.llm_hidden_size": decoder.hidden_size,
    }
    for key, value in agreeing.items():
        if keys.integer(key, value) != value:
            stated = f"{keys.file}: {key} is {keys.values[key]!r:.80}"
            raise UserError(f"{stated}, but only {value} agrees with its other keys")
    return config


_DECODER_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
}
"""Fields of `DecoderConfig` -> keys of `llm_config`."""


def _head_width(folder: Path, weights: WeightFiles, *, convolutional: bool) -> int:
    """No key states the width of the head: it is that of the weights."""
    name = f"{_HEAD}conv1.weight" if convolutional else f"{_HEAD}0.weight"
    if name not in set(weights):
        head = "true" if convolutional else "false"
        raise UserError(f"{folder}: config.json has use_pixel_head {head}, but the weights lack {name}")
    shape = weights.shape(name)
    if len(shape) != (4 if convolutional else 2) or not shape[0] or (convolutional and shape[0] % 4):
        raise UserError(f"{folder}: {name} has shape {list(shape)}, which is no such head's")
    return shape[0]


def config_files(config: NeoConfig) -> dict[str, dict[str, Any]]:
    """See `FolderFormat.config_files`."""
    decoder = config.decoder
    sizes = {theirs: getattr(decoder, ours) for ours, theirs in _DECODER_SIZES.items()}
    llm = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **sizes,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_theta_hw": decoder.rope_theta_grid,
        "rope_scaling": None,
        "max_position_embeddings": decoder.max_position_embeddings,
        "max_position_embeddings_hw": POSITIONS,
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "neo_vision",
        "hidden_size": config.embedder_channels,
        "llm_hidden_size": decoder.hidden_size,
        "downsample_ratio": 0.5,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "rope_theta_vision": config.rope_theta_patches,
        "max_position_embeddings_vision": POSITIONS,
    }
    root = {
        "architectures": ["NEOChatModel"],
        "model_type": "neo_chat",
        "template": "neo1_0",
        "tie_word_embeddings": False,
        "downsample_ratio": 0.5,
        "patch_size": config.patch_size,
        "timestep_shift": 1.0,
        "time_schedule": "standard",
        "noise_scale_mode": "resolution",
        "noise_scale_base_image_seq_len": config.noise_scale_tokens,
        "add_noise_scale_embedding": True,
        "noise_scale_max_value": config.noise_scale_max,
        "noise_scale": config.noise_scale,
        "P_mean": -config.noise_logit_mean,
        "P_std": config.noise_logit_std,
        "t_eps": config.smallest_time,
        "use_pixel_head": config.head == "convolutional",
        "use_adaLN": False,
        "llm_config": llm,
        "vision_config": vision,
    }
    if config.system_message_sha256 is not None:
        root["system_message_sha256"] = config.system_message_sha256
    return {"config.json": root}
