"""Random weights of a world: a checkpoint folder for the base's training to start from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scone_pl.checkpoints.model import save_pretrained
from scone_pl.checkpoints.training_record import read_record
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_folder

if TYPE_CHECKING:
    from scone_pl.data.tokenizer import Tokenizer
    from scone_pl.model.network import Network


def write_random(folder: Path, settings: Mapping[str, Any], build: Callable[[], tuple[Network, Tokenizer]]) -> bool:
    """Writes weights, configs and tokenizer; `settings` decide them and are kept in the record.

    Returns:
        False if the folder already holds the same: runs that started from it would not recognise a new one.

    Raises:
        UserError: the folder holds something else.
    """
    check_output_folder(folder)
    record = {"stage": "random", **settings, "steps": 0}
    if folder.exists():
        if read_record(folder) == record:
            return False
        raise UserError(f"{folder}: holds other weights; choose another --output")
    model, tokenizer = build()
    with tempfile.TemporaryDirectory() as assets:
        tokenizer.save(assets)
        save_pretrained(model, folder, assets_from=assets, training=record)
    return True
