"""The published implementation's numbers (tests/golden/parity) computed again by both attention backends in float32."""

from __future__ import annotations

import torch

from benchmarks.gpu_check.report import FAILURES, Report, one_line
from benchmarks.gpu_check.settings import ROOT, Settings
from scone_pl.parity import ParityCase

FOLDER = ROOT / "tests/golden/parity"


def run(settings: Settings, report: Report) -> None:
    """Every quantity of the folder must be within the tolerance that `python -m scone_pl parity` asks for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for attention in ("split", "flex") if settings.cuda else ("split",):
        try:
            comparisons = list(ParityCase(FOLDER, attention=attention, device=str(settings.device)).compare())
        except FAILURES as error:
            report.require(False, f"{attention}: {one_line(error)}")
            continue
        wrong = [c for c in comparisons if not c.agrees]
        worst = max((c for c in comparisons if c.tolerance), key=lambda c: c.error / c.tolerance)
        agreeing = {"quantities": len(comparisons), "agree": len(comparisons) - len(wrong)}
        report.record(**{attention: {**agreeing, "worst": str(worst)}})
        for comparison in wrong:
            report.require(False, f"{attention}: {comparison}")
    if not settings.cuda:
        report.skip("needs CUDA: flex has no backward on the CPU")
