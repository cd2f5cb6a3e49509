"""`construct run` over many rows on one machine: time and memory of the whole pipeline, and of each of its steps.

A pool in UNO-1M's layout with small images of noise, each row two samples; a server on loopback that scores at once.
Memory is that of all processes of the run (PSS, sampled), so that flat means flat: a step is sampled in its first
tenth and over all of its time.

    .venv/bin/python benchmarks/construct.py --rows 100000 --output /tmp/construct    # about an hour of one core
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import yaml
from aiohttp import web
from PIL import Image

SIDE = 64
SERVER = "http://127.0.0.1:{}/v1"


def write_pool(folder: Path, rows: int) -> None:
    """Half as many pairs as rows, in files of 1000; each image has random colours of its own."""
    generator = np.random.default_rng(0)
    entries = []
    for number in range(rows // 2):
        paths = [f"images/{number // 500:04d}/{number}_{which}.jpg" for which in (1, 2)]
        for path in paths:
            small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            encoded = io.BytesIO()
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(encoded.getvalue())
        words = [f"A cat {' '.join(map(str, generator.integers(0, 10**6, 4)))} at noon." for _ in paths]
        entries.append(
            {
                "img_path1": paths[0],
                "img_path2": paths[1],
                "caption": {"img_path1": words[0], "img_path2": words[1], "judgment": "same", "subject": "cat"},
                "vlm_filter_cot": {"score_final": 4.0},
            }
        )
    (folder / "labels").mkdir()
    (folder / "benchmark").mkdir()
    for number in range(min(100, rows // 20)):  # leaks
        shutil.copy(folder / f"images/0000/{number}_1.jpg", folder / "benchmark")
    for start in range(0, len(entries), 1000):
        (folder / f"labels/{start:06d}.json").write_text(json.dumps(entries[start : start + 1000]))


def serve() -> int:
    """Starts a server that gives nine of ten questions the score 4; returns its port."""
    port: list[int] = []
    ready = threading.Event()

    async def chat(request: web.Request) -> web.Response:
        score = 4 if sum((await request.read())[-64:]) % 10 else 2
        message = {"content": json.dumps({"deductions": [], "score": score})}
        usage = {"prompt_tokens": 900, "completion_tokens": 20}
        return web.json_response({"model": "mock", "choices": [{"message": message}], "usage": usage})

    async def run() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.append(runner.addresses[0][1])
        ready.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    ready.wait()
    return port[0]


def memory(pid: int) -> float:
    """MB of a process and its children, shared pages divided among them."""
    total = 0.0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except (OSError, ValueError):
            continue
        total += int(rollup.split("Pss:")[1].split()[0]) / 1000
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    folder = options.output
    folder.mkdir(parents=True)
    write_pool(folder / "pool", options.rows)
    steps = [
        {"step": "quality", "min_side": SIDE, "min_sharpness": 0},
        {"step": "duplicates"},
        {"step": "decontaminate", "benchmarks": [str(folder / "pool/benchmark")]},
        {"step": "draw", "samples": options.rows * 7 // 10, "by": ["pool"]},
        {"step": "consistency"},
    ]
    pool = {"name": "uno", "path": str(folder / "pool/labels"), "image_root": str(folder / "pool"), "license": "cc0"}
    vlm = {"model": "mock", "base_url": SERVER.format(serve()), "concurrency": 16, "prices": None}
    content = {"output": str(folder / "out"), "pools": [pool], "models": {"vlm": vlm}, "steps": steps}
    (folder / "construct.yaml").write_text(yaml.safe_dump({**content, "workers": options.workers}))
    command = [sys.executable, "-m", "scone_pl", "construct", "run", "--config", str(folder / "construct.yaml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        samples: dict[str, list[float]] = {}
        began = time.monotonic()
        while process.poll() is None:
            done = sorted(file.parent.name for file in (folder / "out/steps").glob("*/state.json"))
            samples.setdefault(str(len(done)), []).append(memory(process.pid))
            time.sleep(min(5.0, options.rows / 2000))
    names = ["00-pools", *(f"{number:02d}-{step['step']}" for number, step in enumerate(steps, 1))]
    print(
        f"{options.rows} rows, {options.workers} workers, exit {process.returncode}, {time.monotonic() - began:.0f} s"
    )
    print("| step | read | kept | s | MB, first tenth | MB, greatest |\n|---|---:|---:|---:|---:|---:|")
    for number, name in enumerate([*names, "shards"]):
        found = samples.get(str(number), [0.0])
        file = folder / f"out/steps/{name}/state.json"
        state = json.loads(file.read_text()) if file.is_file() else {"read": "", "kept": "", "seconds": ""}
        first = max(found[: max(1, len(found) // 10)])
        counts = " | ".join(str(state[key]) for key in ("read", "kept", "seconds"))
        print(f"| {name.partition('-')[2] or name} | {counts} | {first:.0f} | {max(found):.0f} |")


if __name__ == "__main__":
    main()
