"""A forked process is like one that Python has started afresh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import environment, run_python, start_python

SHOWN = """
import json, os, random, signal, sys, threading
print(json.dumps({
    "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path[0], "name": __name__,
    "variable": os.environ["GIVEN"],
    "others": sorted(n for n in os.environ if n.startswith("PYTEST")), "threads": threading.active_count(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler, "input": sys.stdin.read(),
    "main": sys.modules["__main__"].__dict__ is globals(), "leads": os.getsid(0) == os.getpid(),
}))
print("half", end="", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("as_file", [False, True], ids=["code", "a script"])
def test_it_is_as_if_started_afresh(as_file: bool, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SHOWN)
    words = [str(tmp_path / "script.py"), "a", "é"] if as_file else ["-c", SHOWN, "a", "é"]
    env = {**environment(GIVEN="x", PYTHONIOENCODING="utf-8"), "PYTEST_OTHER": "y"}
    forked = run_python(*words, cwd=tmp_path, env=env)
    afresh = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (forked.returncode, forked.stderr) == (afresh.returncode, afresh.stderr) == (3, "half")
    assert json.loads(forked.stdout) == json.loads(afresh.stdout)


def test_signals_and_sessions(tmp_path: Path) -> None:
    code = "import os, time; open('ready', 'w').write(str(os.getsid(0))); time.sleep(60)"
    process = start_python("-c", code, cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "ready").exists() or not (tmp_path / "ready").read_text():
        assert process.poll() is None
    assert (tmp_path / "ready").read_text() == str(process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == process.poll() == -signal.SIGKILL
    process.kill()  # of what has ended: nothing
