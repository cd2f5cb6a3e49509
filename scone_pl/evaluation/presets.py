"""Named settings of the judge: YAML files in `judges/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.files import read_yaml

FOLDER = Path(__file__).parent / "judges"


def preset_names() -> list[str]:
    """All names."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def judge_settings(name: str) -> dict[str, Any]:
    """Settings by the name of a preset, or from a YAML file.

    Raises:
        UserError: neither.
    """
    if name in preset_names():
        return read_yaml(FOLDER / f"{name}.yaml", dict)
    if Path(name).is_file():
        return read_yaml(Path(name), dict)
    raise UserError(f"--judge {name}: neither a preset ({', '.join(preset_names())}) nor a YAML file of settings")
