"""`python -m scone_pl download`: published weights and data sets from the Hugging Face hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scone_pl.checkpoints.hub import (
    HubFile,
    HubId,
    check_disk,
    download_root,
    fetch,
    files_of,
    free_bytes,
    hub_id,
    megabytes,
)
from scone_pl.errors import UserError
from scone_pl.outputs import check_output_folder

_SHOWN = 30
"""Files that are listed by name."""


def download(repository: str, to: str | None = None, dataset: bool = False, dry_run: bool = False) -> int:
    """Download a checkpoint or a data set from the Hugging Face hub; run the same command again to resume.

    Args:
        repository: Its id, OWNER/NAME or OWNER/NAME@REVISION, such as Ryann829/Scone, ByteDance-Seed/BAGEL-7B-MoT,
            Ryann829/Scone-S2I-57K or Ryann829/SconeEval.
        to: Folder for the files; by default the cache of Hugging Face, where commands find them by the id.
        dataset: It is a data set; those named above are known.
        dry_run: Only list files, sizes and free disk.
    """
    target = None if to is None else Path(to)
    if target is not None:
        check_output_folder(target)
    found = _repository(repository, dataset=dataset)
    files = files_of(found, target)
    _report(files)
    remaining = sum(file.size for file in files if not file.present)
    folder = download_root(target)
    print(
        f"{len(files)} files of {megabytes(sum(file.size for file in files))}, {megabytes(remaining)} to download; "
        f"{megabytes(free_bytes(folder))} free in {folder}"
    )
    if dry_run:
        return 0
    check_disk(found, files, target)
    print(fetch(found, target, files))
    return 0


def _repository(text: str, *, dataset: bool) -> HubId:
    found = hub_id(text)
    if found is None and Path(text).exists():
        raise UserError(f"{text}: is a local path; an id of the hub is OWNER/NAME, such as Ryann829/Scone")
    if found is None:
        raise UserError(
            f"{text}: not an id of the hub; it is OWNER/NAME or OWNER/NAME@REVISION, such as Ryann829/Scone"
        )
    return dataclasses.replace(found, dataset=True) if dataset else found


def _report(files: Sequence[HubFile]) -> None:
    width = max((len(file.name) for file in files[:_SHOWN]), default=0)
    for file in files[:_SHOWN]:
        print(f"  {file.name:<{width}}  {megabytes(file.size):>10}{'  present' if file.present else ''}")
    if len(files) > _SHOWN:
        print(f"  and {len(files) - _SHOWN} more files")
