"""Training provenance in a snapshot: stage, steps, and the weights that training started from; see `SconeModule`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.model.lora import LoRAConfig

DESCRIPTION = "scone"
"""Its key in the part of a snapshot that is no tensor state."""
_TYPES = {"stage": str, "init_from": str, "start": str, "steps": int}


def provenance_in(run: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """The provenance in a snapshot; empty if it has none.

    Args:
        run: see `snapshots.read_run`.
        source: the snapshot, for messages.

    Raises:
        UserError: a value is missing or of a wrong type.
    """
    described = run.get(DESCRIPTION)
    if described is None:
        return {}
    if not isinstance(described, dict):
        raise _damaged(source, f"{DESCRIPTION} is no object")
    for name, kind in _TYPES.items():
        if type(described.get(name)) is not kind:
            raise _damaged(source, f"{DESCRIPTION}.{name} is {described.get(name)!r:.80}")
    lora_of(described, source)
    return described


def lora_of(described: Mapping[str, Any], source: str | Path) -> LoRAConfig | None:
    """Settings of the adapters that were trained; None if there were none.

    Raises:
        UserError: they are damaged.
    """
    values = described.get("lora")
    if values is None:
        return None
    try:
        return LoRAConfig(**values)
    except (TypeError, ValueError) as error:
        raise _damaged(source, f"{DESCRIPTION}.lora: {error}") from None


def _damaged(source: str | Path, reason: str) -> UserError:
    return UserError(f"{source}: damaged, or no snapshot of scone_pl ({reason}); use another one")
