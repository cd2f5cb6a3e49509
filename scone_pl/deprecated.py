"""Old names of options, recipe keys and arguments, each beside the name that replaces it.

An old name works as before and warns once per process. This table is the only place that knows any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scone_pl import messages
from scone_pl.errors import UserError

ARGUMENTS = {"text_guidance_scale": "guidance_scale"}
"""Keyword arguments of `SconePipeline.__call__`."""
LOADING = {"folder": "pretrained_model_name_or_path", "dtype": "torch_dtype", "device": "device_map"}
"""Keyword arguments of `SconePipeline.from_pretrained`."""
OPTIONS: dict[str, dict[str, str]] = {
    "evaluate": {"pictures": "images"},
    "judge": {"pictures": "images"},
    "similarity": {"pictures": "num_images_per_prompt"},
    "generate": {"text_guidance_scale": "guidance_scale", "bridge_picture": "bridge_image"},
}
"""Verb -> options of it. For fit, validate, test, predict and estimate, `RECIPE` holds too."""
COMMANDS = {"mini picture": "mini contact_sheet"}
REMOVED = {
    "mini evidence": "study run experiments/studies/NAME.yaml",
    "mini arm": "study arm",
    "mini page": "study page",
}
"""Commands that are refused by name, with what does their work."""
RECIPE = {
    "sampling_seed": "sampling.seed",
    "height": "sampling.height",
    "width": "sampling.width",
    "sampling.guidance.text_scale": "sampling.guidance_scale",
    "sampling.guidance.image_scale": "sampling.image_guidance_scale",
    "sampling.guidance.interval": "sampling.guidance_interval",
    "sampling.guidance.rescale": "sampling.guidance_rescale",
    "sampling.guidance.rescale_min": "sampling.guidance_rescale_min",
}
"""Keys under `model.init_args` of a recipe, of each step of its `chain`, and of what was typed."""
MODEL = "model.init_args."
DATA = {"max_skipped_share": "max_skipped_fraction"}
"""Keys under `data`, likewise."""
_warned: set[str] = set()


def rename_arguments(given: Mapping[str, Any], names: Mapping[str, str] = ARGUMENTS) -> dict[str, Any]:
    """Keyword arguments under their present names; `names`: old -> new."""
    renamed: dict[str, Any] = {}
    for name, value in given.items():
        new = names.get(name, name)
        if new != name:
            _warn(name, new)
            if new in given:
                raise UserError(f"{name} is {new} now, and both are given; leave {name} out")
        renamed[new] = value
    return renamed


def rename_command(args: Sequence[str]) -> list[str]:
    """A command line, its verb and command under their present names.

    Raises:
        UserError: a command that is gone.
    """
    typed = " ".join(args[:2])
    if typed in REMOVED:
        raise UserError(f"{typed} is now: python -m scone_pl {REMOVED[typed]}")
    if typed not in COMMANDS:
        return list(args)
    _warn(typed, COMMANDS[typed])
    return [*COMMANDS[typed].split(), *args[2:]]


def rename_options(args: Sequence[str], verb: str, *, recipe: bool = False) -> list[str]:
    """What was typed after a verb, options under their present names.

    Args:
        args: as typed.
        verb: key of `OPTIONS`.
        recipe: whether options override keys of a recipe.
    """
    names = {f"--{old}": f"--{new}" for old, new in OPTIONS.get(verb, {}).items()}
    if recipe:
        for prefix in (MODEL, "model."):
            names |= {f"--{prefix}{old}": f"--{prefix}{new}" for old, new in RECIPE.items()}
        names |= {f"--data.{old}": f"--data.{new}" for old, new in DATA.items()}
    renamed: list[str] = []
    for position, arg in enumerate(args):
        if arg == "--":
            return [*renamed, *args[position:]]
        option, equals, value = arg.partition("=")
        if option in names:
            _warn(option, names[option])
        renamed.append(names.get(option, option) + equals + value)
    return renamed


def rename_keys(recipe: Any, prefix: str = "") -> Any:
    """A recipe's content, or a step's of its chain, keys under their present names.

    Args:
        recipe: what YAML gave; anything but a mapping is returned as it is.
        prefix: what a warning puts before a key.

    Raises:
        UserError: an old and the new name of one key are both given.
    """
    if not isinstance(recipe, dict):
        return recipe
    if isinstance(recipe.get("chain"), list):
        recipe = {**recipe, "chain": [rename_keys(step, "chain: ") for step in recipe["chain"]]}
    if isinstance(recipe.get("data"), dict):
        recipe = {**recipe, "data": _renamed(recipe["data"], DATA, f"{prefix}data.")}
    model = recipe.get("model")
    if isinstance(model, dict) and isinstance(model.get("init_args"), dict):
        recipe = {**recipe, "model": {**model, "init_args": rename_settings(model["init_args"], prefix + MODEL)}}
    return recipe


def rename_settings(settings: Mapping[str, Any], prefix: str = "", *, warn: bool = True) -> dict[str, Any]:
    """The mapping under `model.init_args`, keys under their present names; see `rename_keys`.

    Args:
        settings: the mapping.
        prefix: what a warning puts before a key.
        warn: False for files that no person wrote.
    """
    renamed = _renamed(settings, RECIPE, prefix, warn=warn)
    sampling = renamed.get("sampling")
    if isinstance(sampling, dict) and sampling.get("guidance") == {}:
        del sampling["guidance"]
    return renamed


def _renamed(
    settings: Mapping[str, Any], names: Mapping[str, str], prefix: str, *, warn: bool = True
) -> dict[str, Any]:
    renamed: dict[str, Any] = {key: _copy(value) for key, value in settings.items()}
    for old, new in names.items():
        *outer, last = old.split(".")
        holder = _inner(renamed, outer)
        if holder is None or last not in holder:
            continue
        value = holder.pop(last)
        if warn:
            _warn(prefix + old, prefix + new)
        *outer, last = new.split(".")
        target: Any = renamed
        for name in outer:
            target = target.setdefault(name, {})
        if not isinstance(target, dict) or last in target:
            raise UserError(f"{prefix}{old} is {new} now, and both are given; leave {old} out")
        target[last] = value
    return renamed


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _inner(tree: Any, path: Sequence[str]) -> dict[str, Any] | None:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else None


def _warn(old: str, new: str) -> None:
    if old not in _warned:
        _warned.add(old)
        messages.warn(f"{old} is deprecated; write {new}")
