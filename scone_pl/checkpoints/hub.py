"""Checkpoints and data sets by their id on the Hugging Face hub, by huggingface_hub with its cache and offline mode.

`owner/name` or `owner/name@revision` stands for a folder wherever a checkpoint folder is expected, unless a folder of
that name exists.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scone_pl.checkpoints.formats import FolderFormat, base_format, format_of
from scone_pl.checkpoints.hub_errors import UnreachableError, endpoint, one_line
from scone_pl.data.storage import sha256_of
from scone_pl.errors import UserError
from scone_pl.messages import warn
from scone_pl.model.bases import BASES, default_base

DATASETS = ("Ryann829/Scone-S2I-57K", "Ryann829/SconeEval", "Ryann829/OmniContext-jsonl", "OmniGen2/OmniContext")
"""Data sets that commands here read; other ids are models unless said otherwise."""
MODELS = {"Scone": "Ryann829/Scone", "BAGEL-7B-MoT": "ByteDance-Seed/BAGEL-7B-MoT"}
"""Name of a folder -> the id of the published weights that documentation and recipes put there."""
_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})(?:@([\w./-]{1,200}))?")
_LOCAL = ("weights", "runs", "experiments", "data_shards", "checkpoints", "tests", "docs")
"""First parts of paths that are no owner's name: what the documentation and recipes call folders."""
_CONFIG = "config.json"
"""Says which base model a repository is of, see `model.bases.base_of`."""
_OPTIONAL = (
    "training.json",
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
    "added_tokens.json",
)
"""Beside what the base model's folder format has."""
_WEIGHTS = ("ema", "model")
"""In order of preference, as `checkpoints/folder.py` reads them."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
RESUMED_FROM = 16 << 20
"""Bytes from which on a file that is downloaded to a folder of one's own continues where it was interrupted."""
_MARGIN = 1 << 30
"""Bytes that must remain free on the disk."""


@dataclass(frozen=True)
class HubId:
    """A repository of the hub."""

    repo: str
    revision: str | None = None
    dataset: bool = False

    @property
    def kind(self) -> str:
        return "dataset" if self.dataset else "model"

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class HubFile:
    """A file to download."""

    name: str
    size: int
    present: bool
    """Already there, whole."""
    sha256: str | None = None
    """Of the content, for large files."""


def hub_id(text: str | os.PathLike[str]) -> HubId | None:
    """The repository that a checkpoint argument names; None = it is a path."""
    match = _ID.fullmatch(text) if isinstance(text, str) else None
    if match is None or ".." in text or "--" in text:  # type: ignore[operator] # then there is a match, so it is text
        return None
    owner = match[1].partition("/")[0]
    if owner in _LOCAL or os.path.exists(text) or os.path.isdir(owner):
        return None
    return HubId(match[1], match[2], match[1] in DATASETS)


def local_folder(checkpoint: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint argument; of a hub id that in the cache, where it is downloaded to if need be.

    Raises:
        UserError: the repository is not a checkpoint, or cannot be downloaded.
    """
    found = hub_id(checkpoint)
    return Path(checkpoint) if found is None else _cached(found)


@cache
def _cached(repository: HubId) -> Path:
    if repository.dataset:
        raise UserError(f"{repository}: is a data set, not a checkpoint")
    return fetch(repository)


@contextmanager
def readable_headers(checkpoint: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder of a checkpoint argument, or for a hub id that is not cached a copy without the weights' values.

    Its weight files have headers and sizes, but no content (sparse files), so sizes and shapes can be read.
    """
    repository = hub_id(checkpoint)
    if repository is None or is_offline() or cached_folder(repository) is not None:
        yield local_folder(checkpoint)
        return
    from huggingface_hub import HfApi, hf_hub_download

    where: dict[str, Any] = {"revision": repository.revision, "repo_type": repository.kind}
    with tempfile.TemporaryDirectory() as temporary:
        for file in files_of(repository):
            target = Path(temporary) / file.name
            with one_line(str(repository), repository.kind):
                if file.name.endswith(".safetensors"):
                    api = HfApi(endpoint=endpoint())
                    _write_header(api.parse_safetensors_file_metadata(repository.repo, file.name, **where), target)
                else:
                    source = hf_hub_download(
                        repository.repo, file.name, cache_dir=_cache_dir(), endpoint=endpoint(), **where
                    )
                    shutil.copyfile(source, target)
        yield Path(temporary)


def _write_header(metadata: Any, file: Path) -> None:
    header: dict[str, Any] = {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": list(tensor.data_offsets)}
        for name, tensor in metadata.tensors.items()
    }
    text = json.dumps(header).encode()
    size = max((tensor.data_offsets[1] for tensor in metadata.tensors.values()), default=0)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + size)


def cached_folder(repository: HubId) -> Path | None:
    """The folder of a checkpoint in the cache, if it is complete there; asks no server."""
    from huggingface_hub import try_to_load_from_cache

    where = {"cache_dir": _cache_dir(), "revision": repository.revision, "repo_type": repository.kind}
    known = {base_format(base).CONFIG_FILES[0] for base in BASES.values()} | {ADAPTER_FILES[0]}
    paths = [try_to_load_from_cache(repository.repo, name, **where) for name in sorted(known)]
    path = next((path for path in paths if isinstance(path, str)), None)
    if path is None:
        return None
    folder = Path(path).parent
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    try:
        needed = needed_files(repository, names, format_of(folder))
    except UserError:
        return None
    parts = [re.fullmatch(r".*-of-(\d+)\.safetensors", name) for name in needed]
    counts = [int(part[1]) for part in parts if part]
    return folder if not counts or counts[0] == len(counts) else None


def needed_files(repository: HubId, names: Sequence[str], folder_format: FolderFormat) -> list[str]:
    """The files of a repository that are read here.

    Args:
        repository: of a data set everything is.
        names: all of its files.
        folder_format: of its base model.

    Raises:
        UserError: it lacks a file that a checkpoint must have.
    """
    if repository.dataset:
        return [name for name in names if name != ".gitattributes"]
    required = folder_format.PUBLISHED_FILES
    if ADAPTER_FILES[0] in names and required[0] not in names:
        missing = [name for name in ADAPTER_FILES if name not in names]
        found = [name for name in ADAPTER_FILES if name in names]
    else:
        missing = [name for name in required if name not in names]
        known = (*required, *folder_format.OTHER_FILES, *folder_format.PROMPT_FILES, *_OPTIONAL)
        found = [name for name in known if name in names] + _weight_files(names)
        if not missing and not _weight_files(names):
            missing = [f"{_WEIGHTS[0]}.safetensors"]
    if missing:
        raise UserError(f"{repository}: no checkpoint that is read here, it has no {missing[0]}; is the id right?")
    return found


def _weight_files(names: Sequence[str]) -> list[str]:
    for stem in _WEIGHTS:
        if f"{stem}.safetensors" in names:
            return [f"{stem}.safetensors"]
        if f"{stem}.safetensors.index.json" in names:
            parts = fnmatch.filter(names, f"{stem}-*-of-*.safetensors")
            return [f"{stem}.safetensors.index.json", *sorted(parts)] if parts else []
    return []


def files_of(repository: HubId, to: Path | None = None) -> list[HubFile]:
    """What a download would fetch; asks the server.

    Raises:
        UserError: the repository cannot be listed, or is no checkpoint.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    with one_line(str(repository), repository.kind):
        info = HfApi(endpoint=endpoint()).repo_info(
            repository.repo, repo_type=repository.kind, revision=repository.revision, files_metadata=True
        )
    files = getattr(info, "siblings", None) or ()
    sizes = {file.rfilename: file.size or 0 for file in files}
    digests = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}

    def present(name: str) -> bool:
        if to is not None:
            return (to / name).is_file() and (to / name).stat().st_size == sizes[name]
        where = {"cache_dir": _cache_dir(), "revision": info.sha, "repo_type": repository.kind}
        return isinstance(try_to_load_from_cache(repository.repo, name, **where), str)

    names = needed_files(repository, list(sizes), _format_of(repository, sizes))
    return [HubFile(name, sizes[name], present(name), digests.get(name)) for name in names]


def _format_of(repository: HubId, names: Collection[str]) -> FolderFormat:
    """That of its base model, for which a repository's `config.json` is fetched if nothing else tells."""
    from huggingface_hub import hf_hub_download

    first = base_format(default_base())
    if repository.dataset or _CONFIG not in names or first.CONFIG_FILES[0] in names:
        return first
    where: dict[str, Any] = {"revision": repository.revision, "cache_dir": _cache_dir(), "endpoint": endpoint()}
    with one_line(str(repository), repository.kind):
        return format_of(Path(hf_hub_download(repository.repo, _CONFIG, **where)).parent)


def fetch(repository: HubId, to: Path | None = None, files: Sequence[HubFile] | None = None) -> Path:
    """Downloads what is needed and not there yet; an interrupted download continues where it ended.

    Args:
        repository: what to download.
        to: folder to put the files into; None = the cache of huggingface_hub.
        files: what `files_of` returned; None = ask.

    Returns:
        The folder.

    Raises:
        UserError: the server refuses or cannot be reached and nothing complete is cached, or the disk is too small.
    """
    if to is None and is_offline():
        folder = cached_folder(repository)
        if folder is None:
            raise UserError(
                f"{repository}: not in the cache of Hugging Face, and HF_HUB_OFFLINE forbids to download it; run "
                f"without it once: python -m scone_pl download {repository}"
            )
        return folder
    try:
        files = files_of(repository, to) if files is None else files
    except UnreachableError:
        folder = cached_folder(repository) if to is None else None
        if folder is None:
            raise
        warn(f"{repository}: the hub cannot be reached; what is cached is used")
        return folder
    check_disk(repository, files, to)
    remaining = sum(file.size for file in files if not file.present)
    if remaining and to is None:
        print(f"{repository}: downloading {megabytes(remaining)}", file=sys.stderr)
    if to is not None:
        large = [file for file in files if file.size >= RESUMED_FROM]
        files = [file for file in files if file.size < RESUMED_FROM]
        for file in large:
            if not file.present:
                _resume(repository, file, to)
    from huggingface_hub import snapshot_download

    with one_line(str(repository), repository.kind):
        return Path(
            snapshot_download(
                repository.repo,
                repo_type=repository.kind,
                revision=repository.revision,
                cache_dir=_cache_dir(),
                local_dir=to,
                allow_patterns=[glob.escape(file.name) for file in files],
                endpoint=endpoint(),
            )
        )


def _resume(repository: HubId, file: HubFile, to: Path) -> None:
    """Downloads a file into `to` by way of NAME.partial, which an interruption leaves to be continued."""
    # huggingface_hub 2 starts an interrupted file again from its beginning, which here may be 29 GB.
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, not in `__all__`

    partial = to / f"{file.name}.partial"
    partial.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(
        repository.repo, file.name, repo_type=repository.kind, revision=repository.revision, endpoint=endpoint()
    )
    with one_line(str(repository), repository.kind), partial.open("ab") as out:
        if out.tell() > file.size:
            out.truncate(0)
        try:
            http_get(url, out, resume_size=partial.stat().st_size, headers=build_hf_headers(), expected_size=file.size)
        finally:
            out.flush()
            os.fsync(out.fileno())
    if partial.stat().st_size != file.size or file.sha256 not in (None, sha256_of(partial)):
        partial.unlink()
        raise UserError(f"{to / file.name}: was damaged on the way (wrong size or SHA-256); run the same command again")
    os.replace(partial, to / file.name)


def check_disk(repository: HubId, files: Sequence[HubFile], to: Path | None) -> None:
    """Raises `UserError` if what is missing does not fit the disk."""
    remaining = sum(file.size for file in files if not file.present)
    folder = download_root(to)
    free = free_bytes(folder)
    if remaining and remaining + _MARGIN > free:
        raise UserError(
            f"{repository}: {megabytes(remaining)} to download, but {folder} has {megabytes(free)} free; make room, or "
            + ("choose another --to" if to is not None else "set HF_HOME to a larger disk")
        )


def download_root(to: Path | None) -> Path:
    """Where files are written: `to`, or huggingface_hub's cache."""
    if to is not None:
        return to
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(_cache_dir() or HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that `folder`, which may not exist yet, is on."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def megabytes(size: int) -> str:
    """A size in MB, or GB from 10^9 bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def advice(folder: Path) -> str:
    """What to type where a checkpoint folder is missing."""
    repository = MODELS.get(folder.name, "Ryann829/Scone")
    to = folder if folder.name in MODELS else f"weights/{repository.partition('/')[2]}"
    return f"published weights come with: python -m scone_pl download {repository} --to {to}"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _cache_dir() -> str | None:
    return os.environ.get("HF_HUB_CACHE") or None
