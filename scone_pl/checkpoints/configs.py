"""Reads the JSON config files of a checkpoint folder; no key is silently ignored.

Every key of `llm_config.json`, `vit_config.json`, `vae_config.json` and `config.json` is of one of four kinds: obeyed
(a size or number of `SconeConfig`), fixed (it affects the computation, and only some values are implemented), harmless
(it does not affect the computation), or unknown, which is logged once.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from scone_pl.checkpoints.keys import FIXED, HARMLESS, OBEYED
from scone_pl.errors import UserError
from scone_pl.files import read_json
from scone_pl.model.config import AutoencoderConfig, DecoderConfig, ViTConfig

_log = logging.getLogger(__name__)
_reported: set[str] = set()
_MAX_INT = 2**31
T = TypeVar("T", DecoderConfig, ViTConfig, AutoencoderConfig)


class ConfigFile:
    """A JSON object with validated access to its keys."""

    def __init__(self, file: Path, kind: str, values: Mapping[str, Any] | None = None, prefix: str = "") -> None:
        """Checks the fixed keys.

        Args:
            file: path of the file.
            kind: one of the kinds in `keys`.
            values: the object, if it is nested in the file; None = the whole file.
            prefix: prefix of its keys in messages.

        Raises:
            UserError: not a JSON object, or a fixed key has a value that is not implemented.
        """
        self.file, self.kind, self.prefix = file, kind, prefix
        self.values: Mapping[str, Any] = read_json(file, dict) if values is None else values
        for key, allowed in FIXED[kind].items():
            if key in self.values and not any(_same(self.values[key], option) for option in allowed):
                raise self.refused(key, " or ".join(map(_json, allowed)) + " is implemented")

    def refused(self, key: str, needed: str) -> UserError:
        """An error that names file, key and value; `needed` describes valid values."""
        return UserError(f"{self.file}: {self.prefix}{key} is {_json(self.values.get(key))}, but only {needed}")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The unchecked value."""
        return self.values.get(key, default)

    def integer(self, key: str, default: int | None = None, *, maximum: int = _MAX_INT) -> int:
        """An integer of at least 1; without `default` the key is required."""
        value = self._required(key, default)
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.refused(key, f"a whole number from 1 to {maximum} will do")
        return value

    def number(self, key: str, default: float | None = None, *, positive: bool = True) -> float:
        """A finite number; without `default` the key is required."""
        value = self._required(key, default)
        if (
            type(value) not in (int, float)
            or abs(value) > 1e30
            or not math.isfinite(value)
            or (positive and value <= 0)
        ):
            raise self.refused(key, f"a finite {'positive ' if positive else ''}number will do")
        number: float = value
        return number

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._required(key, default)
        if type(value) is not bool:
            raise self.refused(key, "true or false will do")
        return value

    def part(self, key: str, kind: str) -> ConfigFile | None:
        """The nested object under `key`; None if there is none."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refused(key, "an object will do")
        return ConfigFile(self.file, kind, value, f"{self.prefix}{key}.")

    def build(self, kind: type[T], **sizes: Any) -> T:
        """A config of these sizes; contradictions between them are reported as errors of the file."""
        try:
            return kind(**sizes)
        except ValueError as error:
            raise UserError(f"{self.file}: {error}") from None

    def note_unknown(self) -> None:
        """Logs unknown keys once."""
        known = OBEYED[self.kind] | FIXED[self.kind].keys() | HARMLESS[self.kind]
        unknown = sorted(_json(key) for key in self.values if key not in known and not key.startswith("_"))
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            message = f"{self.file}: {self.prefix}{', '.join(unknown[:5])}{more}: unknown here, not used"
            if message not in _reported:
                _reported.add(message)
                _log.warning("%s", message)

    def _required(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None and key not in self.values:
            raise UserError(f"{self.file}: lacks the key {self.prefix}{key}")
        return value


def read_decoder(folder: Path) -> DecoderConfig:
    """`llm_config.json`, as transformers 4 or 5 writes it for Qwen2.

    Raises:
        UserError: it is damaged, lacks a key, or describes an unsupported decoder.
    """
    file = ConfigFile(folder / "llm_config.json", "llm")
    config = file.build(
        DecoderConfig,
        vocab_size=file.integer("vocab_size"),
        hidden_size=file.integer("hidden_size"),
        intermediate_size=file.integer("intermediate_size"),
        num_layers=file.integer("num_hidden_layers"),
        num_heads=file.integer("num_attention_heads"),
        num_kv_heads=file.integer("num_key_value_heads"),
        rope_theta=_rope_theta(file),
        rms_norm_eps=file.number("rms_norm_eps", 1e-6),
        max_position_embeddings=file.integer("max_position_embeddings", 32768),
        separate_experts=file.flag("separate_experts", True),
    )
    if file.get("head_dim") is not None and file.integer("head_dim") != config.head_dim:
        raise file.refused("head_dim", f"hidden_size / num_attention_heads = {config.head_dim} is implemented")
    layer_types = file.get("layer_types")
    if layer_types is not None and layer_types != ["full_attention"] * config.num_layers:
        raise file.refused("layer_types", "full_attention in every layer is implemented")
    file.note_unknown()
    return config


def _rope_theta(file: ConfigFile) -> float:
    """The RoPE base: transformers 4 writes rope_theta (and rope_scaling), transformers 5 rope_parameters."""
    values = {}
    if "rope_theta" in file:
        values["rope_theta"] = file.number("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        rope = file.part(name, "rope")
        if rope is None:
            continue
        if rope.get("rope_theta") is not None:
            values[f"{name}.rope_theta"] = rope.number("rope_theta")
        # Any further key, such as a factor or sections, belongs to an unsupported variant of RoPE.
        for key in sorted(rope.values.keys() - OBEYED["rope"] - FIXED["rope"].keys()):
            raise rope.refused(key, "plain RoPE is implemented")
    if not values:
        raise UserError(f"{file.file}: lacks the key {file.prefix}rope_theta (BAGEL: 1000000.0)")
    if len(set(values.values())) > 1:
        stated = " but ".join(f"{key} is {_json(value)}" for key, value in values.items())
        raise UserError(f"{file.file}: {stated}; they must agree")
    return next(iter(values.values()))


def read_vit(folder: Path, table_side: int) -> ViTConfig:
    """`vit_config.json`; `table_side` is the side of SigLIP's position table.

    Raises:
        UserError: as for `read_decoder`.
    """
    file = ConfigFile(folder / "vit_config.json", "vit")
    layers = file.integer("num_hidden_layers")
    if layers < 2:
        raise file.refused("num_hidden_layers", "2 or more will do: the second-last layer is the feature layer")
    config = file.build(
        ViTConfig,
        hidden_size=file.integer("hidden_size"),
        intermediate_size=file.integer("intermediate_size"),
        num_layers=layers - 1,
        num_heads=file.integer("num_attention_heads"),
        patch_size=file.integer("patch_size"),
        positions_per_side=table_side,
        layer_norm_eps=file.number("layer_norm_eps", 1e-6),
    )
    if "image_size" in file and file.integer("image_size") // config.patch_size != table_side:
        raise file.refused(
            "image_size", f"{table_side} patches of {config.patch_size} pixels a side fit the weights' position table"
        )
    file.note_unknown()
    return config


def read_autoencoder(folder: Path) -> AutoencoderConfig:
    """`vae_config.json`; FLUX's autoencoder if there is none.

    Raises:
        UserError: as for `read_decoder`.
    """
    path = folder / "vae_config.json"
    if not path.exists():
        return AutoencoderConfig()
    file = ConfigFile(path, "vae")
    if file.get("kind") == "space_to_depth":
        config = AutoencoderConfig(kind="space_to_depth", block_size=file.integer("block_size", maximum=1024))
    else:
        multipliers = file.get("ch_mult")
        if not isinstance(multipliers, list) or not 1 <= len(multipliers) <= 10:
            raise file.refused("ch_mult", "a list of 1 to 10 whole numbers will do")
        if not all(type(m) is int and 1 <= m <= 1024 for m in multipliers):
            raise file.refused("ch_mult", "whole numbers from 1 to 1024 will do")
        config = file.build(
            AutoencoderConfig,
            base_channels=file.integer("ch", maximum=65536),
            channel_multipliers=tuple(multipliers),
            num_res_blocks=file.integer("num_res_blocks", maximum=64),
            norm_groups=file.integer("norm_groups", maximum=65536) if "norm_groups" in file else 32,
            latent_channels=file.integer("z_channels", maximum=65536),
            scale_factor=file.number("scale_factor"),
            shift_factor=file.number("shift_factor", positive=False),
        )
    if "downsample" in file and file.integer("downsample") != config.downsample:
        raise file.refused("downsample", f"{config.downsample} agrees with its other keys")
    file.note_unknown()
    return config


def check_root(folder: Path, decoder: DecoderConfig, vae: AutoencoderConfig, sizes: Mapping[str, int]) -> None:
    """Checks `config.json`, if there is one, against the other files and the weights.

    Args:
        folder: the checkpoint folder.
        decoder: config from `llm_config.json`.
        vae: config from `vae_config.json`.
        sizes: key of `config.json` -> size according to the weights' shapes.

    Raises:
        UserError: it contradicts them, or describes an unsupported computation.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    file = ConfigFile(path, "root")
    for key, size in sizes.items():
        # BAGEL's code writes its default of 32 although the table has 64, and never reads the key.
        published = key == "max_latent_size" and file.get(key) == 32 and size == 64
        if key in file and not published and file.integer(key) != size:
            raise file.refused(key, f"{size} agrees with the shapes of the weights")
    if file.number("timestep_shift", 1.0) != 1.0:
        raise file.refused("timestep_shift", "1.0 will do here: training has its own setting, timestep_shift")
    llm, vit, autoencoder = (file.part(f"{kind}_config", kind) for kind in ("llm", "vit", "vae"))
    if llm is not None:
        for key, value in decoder_keys(decoder).items():
            if key in llm and not _same(llm.get(key), value):
                raise llm.refused(key, f"{_json(value)} agrees with llm_config.json")
        _rope_theta(ConfigFile(path, "llm", {**llm.values, "rope_theta": decoder.rope_theta}, llm.prefix))
    if autoencoder is not None:
        for key, value in (("z_channels", vae.channels), ("downsample", vae.downsample)):
            if key in autoencoder and autoencoder.integer(key) != value:
                raise autoencoder.refused(key, f"{value} agrees with the autoencoder")
    if vit is not None:
        vit_file = ConfigFile(folder / "vit_config.json", "vit")
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "patch_size", "layer_norm_eps"):
            if key in vit and key in vit_file and not _same(vit.get(key), vit_file.get(key)):
                raise vit.refused(key, f"{_json(vit_file.get(key))} agrees with vit_config.json")
    for part in (file, llm, vit, autoencoder):
        if part is not None:
            part.note_unknown()


def decoder_keys(decoder: DecoderConfig) -> dict[str, Any]:
    """`decoder` with the keys of `llm_config.json`."""
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "max_position_embeddings": decoder.max_position_embeddings,
        "rope_theta": decoder.rope_theta,
        "rms_norm_eps": decoder.rms_norm_eps,
        "tie_word_embeddings": False,
        # Only if it differs from the published model, so that published folders are reproduced.
        **({} if decoder.separate_experts else {"separate_experts": False}),
    }


def _same(value: object, allowed: object) -> bool:
    """Whether both are equal; unlike with ==, numbers never equal booleans."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _json(value: object) -> str:
    return json.dumps(value, default=str)[:80]
