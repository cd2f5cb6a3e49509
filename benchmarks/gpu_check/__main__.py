"""The command; see the package and docs/gpu.md."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.gpu_check.steps import STEPS

CPU_FORM = "python -m benchmarks.gpu_check --device cpu --quick"


def main() -> int:
    """0: no step failed; 1: some did, named last; 2: it cannot run here."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description="Proves what only a GPU can show; see docs/gpu.md."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_check"), help="folder for results (%(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu with --quick (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), metavar="STEP", help="run these steps")
    parser.add_argument("--list", action="store_true", help="list the steps and their time limits")
    parser.add_argument("--commit", default=None, help="commit that the results belong to (default: what git says)")
    options = parser.parse_args()
    if options.list:
        for name, step in STEPS.items():
            print(f"{name:<18}{step.limit:>4} s  {step.title}")
        return 0
    if complaint := _complaint(options.device, options.quick):
        print(f"error: {complaint}", file=sys.stderr)
        return 2
    from benchmarks.gpu_check.running import failed_steps, run_steps, summary

    # Stopped from outside, it leaves no step behind: they run in process groups of their own.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    about = {
        "commit": options.commit or _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": options.device,
        "quick": options.quick,
    }
    names = [name for name in STEPS if not options.only or name in options.only]
    results = run_steps(names, options.device, quick=options.quick, output=options.output, about=about)
    print(f"\n{summary(results)}\nresults: {options.output}", flush=True)
    return 1 if failed_steps(results) else 0


def _complaint(device: str, quick: bool) -> str:
    """Why the check cannot run here; empty if it can."""
    try:
        import torch

        kind, index = torch.device(device).type, torch.device(device).index or 0
    except ImportError as error:
        return f"{error}; install the project (make install), or see docs/gpu.md"
    except RuntimeError:
        kind = index = None
    if kind not in ("cuda", "cpu"):
        return f"--device {device}: use cuda, cuda:1, ..., or cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        return f"no CUDA device here; on the CPU, at toy sizes: {CPU_FORM}"
    if kind == "cuda" and index >= torch.cuda.device_count():
        return f"--device {device}: there are {torch.cuda.device_count()} CUDA devices here"
    if kind == "cpu" and not quick:
        return f"--device cpu needs --quick, as the real sizes would take hours there: {CPU_FORM}"
    return ""


def _commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "scone_pl", "benchmarks", "experiments"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("-dirty" if changed.stdout else "")


if __name__ == "__main__":
    sys.exit(main())
