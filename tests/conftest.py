"""Fixtures that more than one room uses."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from running import ROOT
from xdist.scheduler import LoadScopeScheduling

from scone_pl.checkpoints.model import config_files
from scone_pl.data.tokenizer import byte_tokenizer
from scone_pl.model.config import bagel_7b
from scone_pl.model.scone import Scone
from scone_pl.worlds.shapes.base import write_base
from scone_pl.worlds.shapes.shards import WORLD_SETS, write_world

_FOREIGN = ("PYTHONWARNINGS", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTHONIOENCODING", "TORCHELASTIC_RUN_ID")
_FOREIGN += ("MAKEFLAGS", "MFLAGS", "GNUMAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES")  # of the `make test` around this run
_FOREIGN_BEGINNINGS = ("SLURM_", "PL_", "MASTER_", "WORLD_SIZE", "LOCAL_", "RANK", "GROUP_RANK", "NODE_RANK", "ROLE_")
"""Of environment variables that would change what a command does or prints."""


def pytest_configure() -> None:
    """Tests bring their own environment, whatever starts them: nohup, a job of Slurm, a shell with other settings."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # a path that looks like an id asks no server
    os.environ["OMP_NUM_THREADS"] = "1"  # processes compute the same bits as the tests; see `set_num_threads` below
    for name in list(os.environ):
        if name in _FOREIGN or name.startswith(_FOREIGN_BEGINNINGS):
            del os.environ[name]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a signal that is ignored stays so in child processes
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


ONE_WORKER = ("test_ranks.py", "test_ckpt_path.py")
"""Files whose tests share runs that take long: all of one go to one worker. (pytest-xdist 3.8's `xdist_group` has no
effect under pytest 9.)"""


class _WholeFiles(LoadScopeScheduling):
    """Tests by themselves, those of `ONE_WORKER` together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if Path(file).name in ONE_WORKER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _WholeFiles(config, log)


@contextmanager
def _no_ranks_stay() -> Iterator[None]:
    """What runs in this process leaves neither a process group nor the variables that Lightning sets for its ranks."""
    names, joined = set(os.environ), dist.is_initialized()
    yield
    if dist.is_initialized() and not joined:
        dist.destroy_process_group()
    for name in set(os.environ) - names:
        if name.startswith(_FOREIGN_BEGINNINGS):
            del os.environ[name]


@pytest.fixture(autouse=True, scope="module")
def _no_ranks_stay_after_a_file() -> Iterator[None]:
    with _no_ranks_stay():
        yield


@pytest.fixture(autouse=True)
def _no_ranks_stay_after_a_test(_no_ranks_stay_after_a_file: None) -> Iterator[None]:
    with _no_ranks_stay():
        yield


torch.set_num_threads(1)  # models are tiny, and tests run side by side


@pytest.fixture(scope="session")
def mini_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the mini recipes run: shards and random base weights, where the recipes look for them."""
    folder = tmp_path_factory.mktemp("mini_world")
    for name, world_set in WORLD_SETS.items():
        write_world(folder / "data_shards/mini" / name, world_set, samples=120, progress=False)
    write_base(folder / "runs/mini/base")
    write_base(folder / "runs/photos/base", preset="mini_photo")
    (folder / "data_shards/tiny").symlink_to(ROOT / "data_shards/tiny")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.fixture(scope="session")
def bagel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with the published model's keys and shapes, and a hole in place of 29 GB of weights."""
    folder = tmp_path_factory.mktemp("bagel") / "BAGEL-7B-MoT"
    folder.mkdir()
    with torch.device("meta"):
        model = Scone(bagel_7b())
    header: dict[str, object] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        if not name.startswith("autoencoder."):
            start, end = end, end + 2 * tensor.numel()
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "ema.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    for name, content in config_files(bagel_7b()).items():
        (folder / name).write_text(json.dumps(content))
    byte_tokenizer().save(folder)
    return folder
