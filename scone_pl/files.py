"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(text: str, file: Path) -> None:
    """Replaces `file`, making its folder if needed."""
    write_bytes(text.encode(), file)


def write_bytes(content: bytes, file: Path) -> None:
    """Replaces `file`, making its folder if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.partial")
    aside.write_bytes(content)
    os.replace(aside, file)


def write_json(content: dict[str, Any], file: Path) -> None:
    """Replaces `file`."""
    write_text(json.dumps(content, indent=1) + "\n", file)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `path` when all is written, or vanishes if that fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        replace_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Renames `new` to `path`; what was there is deleted."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    sync_folder(new)
    new.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Makes renames within a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
