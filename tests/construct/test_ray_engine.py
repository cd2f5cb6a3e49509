"""The Ray engine on two nodes: the same bytes as the local one, whoever is killed; and a word to those without Ray."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pool_files import num_answers, write_config
from running import ROOT, start_scone

from scone_pl.__main__ import main
from scone_pl.worlds.planted.pools import write_pools
from scone_pl.worlds.planted.proof import construction, digest
from scone_pl.worlds.planted.server import IconServer

KEY = "sk-never-written-anywhere-1234567890"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "ray"], "--engine ray needs Ray: pip install 'scone_pl[ray]'"),
        (["--address", "auto"], "give --engine ray, too"),
        (["--engine", "ray", "--tasks", "2", "--task", "0"], "give --engine ray or --tasks, not both"),
    ],
)
def test_without_ray_it_is_one_line(
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    config = write_config(tmp_path / "c.yaml", pools=[{"name": "p", "path": str(tmp_path)}])
    assert main(["construct", "run", "--config", config, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a CPU each, which know the key and this code."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("ICONS_API_KEY", KEY)
    utils = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    found = utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        found.add_node(**node)
        yield found
    finally:
        found.shutdown()


def workers(cluster: Any) -> list[int]:
    """Processes of the actors on all nodes."""
    raylets = {process.process.pid for node in cluster.list_all_nodes() for process in node.all_processes["raylet"]}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent in raylets and name.startswith(b"ray::Worker"):
            found.append(int(folder.name))
    return found


def wait(until: Callable[[], Any], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_workers_and_a_killed_driver_lose_nothing(tmp_path: Path, cluster: Any) -> None:
    pools = write_pools(tmp_path / "icons", 12, 8, seed=2)
    output = tmp_path / "out"
    options = ["--engine", "ray", "--address", cluster.address, "--workers", "2"]
    with IconServer(pools, errors=0.0, delay=0.05) as server:
        settings = construction(pools, output, server.url, sample=30)
        content = {
            name: getattr(settings, name) for name in ("output", "pools", "models", "steps", "outputs", "sample")
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
        command = ["construct", "run", "--config", str(tmp_path / "c.yaml")]
        process = start_scone(*command, *options, cwd=tmp_path, stderr=tmp_path / "err")
        wait(lambda: num_answers(output) >= 10 or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "err").read_text()
        victims = workers(cluster)
        assert len(victims) == 2
        os.kill(victims[0], signal.SIGKILL)
        wait(lambda: victims[0] not in workers(cluster))
        goal = num_answers(output) + 15
        wait(lambda: num_answers(output) >= goal or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "err").read_text()
        process.kill()
        process.wait()
        wait(lambda: not workers(cluster))
        time.sleep(1)  # what was on its way when they were killed is counted too
        stored, answered = num_answers(output), sum(server.requests.values())
        assert answered - stored <= 2 * 8  # on their way, twice
        assert main([*command, *options]) == 0
        assert sum(server.requests.values()) - answered == num_answers(output) - stored
        content["output"] = str(tmp_path / "whole")
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**content, "workers": 1}))
        assert main(command) == 0
    for name in ("refined", "multi"):
        assert digest(output / "shards" / name) == digest(tmp_path / "whole/shards" / name)
    sessions = [Path(node.get_session_dir_path()) for node in cluster.list_all_nodes()]
    for file in (file for folder in (output, *sessions) for file in folder.rglob("*")):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
