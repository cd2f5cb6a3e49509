"""Tables of settings in the documentation are complete, and their defaults are the code's."""

from __future__ import annotations

import dataclasses
import re

from running import ROOT

from scone_pl.construct.models import ModelConfig
from scone_pl.construct.steps.registry import STEPS
from scone_pl.model.config import BridgeConfig
from scone_pl.processes import PREEMPTION_SIGNALS
from scone_pl.sampling.settings import SamplingConfig
from scone_pl.study.frontier import points
from scone_pl.study.result import Result


def test_sampling_settings() -> None:
    section = (ROOT / "docs/sampling.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    documented = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    shown = {f.name: "null" if f.default is None else str(f.default) for f in dataclasses.fields(SamplingConfig)}
    assert documented == shown


def test_bridge_settings() -> None:
    text = (ROOT / "docs/bridge.md").read_text()
    missing = [f.name for f in dataclasses.fields(BridgeConfig) if not re.search(rf"`{f.name}\b", text)]
    assert missing == []


def test_steps_and_models_of_construct() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs/construct.md").read_text().splitlines() if line[:2] == "| "]
    tables = {row[0].strip("| `"): row[1] for row in rows if len(row) == 2}  # the settings of steps come last
    for name, kind in {**STEPS, "model": ModelConfig}.items():
        text = tables[name] if name in STEPS else " ".join(tables[part] for part in ("where", "how", "for `plan"))
        documented = dict(re.findall(r"`(\w+)(?:: ([^`]+))?`", text))
        fields = [f for f in dataclasses.fields(kind) if f.name not in ("name", "input", "budget")]
        assert {f.name for f in fields} <= documented.keys(), name
        for f in fields:
            assert documented[f.name] in ("", "[]", str(f.default), str(f.default).lower()), f.name


def test_exit_statuses() -> None:
    """Every status that the table names is one that the code has, or the shell's for a signal."""
    table = (ROOT / "docs/errors.md").read_text().partition("## Exit status")[2].partition("\n## ")[0]
    documented = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for n in row.split(",")}
    source = "\n".join(file.read_text() for file in (ROOT / "scone_pl").rglob("*.py"))
    named = {int(number) for number in re.findall(r"^[A-Z_]+ = (\d+)$", source, re.MULTILINE)}
    assert documented - {0, 1, *(128 + number for number in PREEMPTION_SIGNALS)} <= named


def test_fewer_passes_are_the_numbers_of_their_study() -> None:
    section = (ROOT / "docs/performance.md").read_text().partition("### Fewer passes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| (\d\.\d\d) \| ([+-].+) \|$", section, re.MULTILINE)
    assert len(rows) == 7
    found = points(Result.read(ROOT / "docs/evidence/sampling.json"))
    labels = {"fast, guidance branches in every second": "preset: fast, branches every 2nd step",
              "**preset fast** (every third step)": "preset: fast", "every second step": "every 2nd step"}  # fmt: skip
    measured = {
        point.label.removeprefix("(c') · "): (f"{point.cost:.2f}", f"{point.difference.mean:+.2f}", point.difference)
        for point in found
    }
    for name, cost, difference in rows:
        expected_cost, mean, estimate = measured[labels.get(name, name)]
        assert (cost, difference) == (expected_cost, f"{mean} ± {estimate.half_width:.2f}"), name
