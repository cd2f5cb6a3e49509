"""Runs one step in this process: what `running.py` starts."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

import torch

from benchmarks.gpu_check.report import FAILURES, Report, one_line
from benchmarks.gpu_check.settings import Settings
from benchmarks.gpu_check.steps import STEPS


def main() -> int:
    """Status 1 if the step raised; what it measured until then is in its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    settings = Settings(device, options.quick)
    if settings.cuda:
        torch.cuda.set_device(settings.device)
    report = Report(options.report)
    report.record()
    try:
        importlib.import_module(f"benchmarks.gpu_check.{STEPS[options.step].module}").run(settings, report)
    except FAILURES as error:
        traceback.print_exc()
        report.require(False, one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
