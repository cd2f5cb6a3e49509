"""The layers of a checkpoint as an evaluator of studies: the verb `layers` in a process of its own, then its report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import scone_pl
from scone_pl.analysis import choice
from scone_pl.errors import UserError
from scone_pl.evaluation.evaluator import Column, Evaluator, Report, code_digest, with_at_most
from scone_pl.files import read_bytes, read_json

PACKAGE = Path(scone_pl.__file__).parent


@dataclass(frozen=True, kw_only=True)
class LayersEvaluator(Evaluator):
    """How well the similarity of every layer separates target tokens from others, on samples of a data set."""

    kind: Literal["layers"] = "layers"
    data: str = ""
    """Shard set, JSONL file or folder, or parquet; with boxes of candidates for the measures that need labels."""
    samples: int = 64
    """Number of samples, the first that have references and an instruction."""
    options: tuple[str, ...] = field(default_factory=tuple)
    """More arguments for the verb `layers`, such as --dtype bfloat16."""

    name: ClassVar[str] = "layers"
    metrics: ClassVar[Mapping[str, Callable[[Report], float]]] = choice.METRICS
    compared: ClassVar[tuple[Column, ...]] = ()
    plotted: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; it must be at least 1")

    def check_inputs(self, source: str) -> None:
        if "://" not in self.data and not (self.data and Path(self.data).exists()):
            raise UserError(
                f"{source}: data is {self.data!r}, no file or folder; give --evaluators '{{layers: {{data: PATH}}}}'"
            )

    @property
    def identity(self) -> dict[str, Any]:
        path = Path(self.data)
        file = path / "manifest.json" if path.is_dir() else path
        content = hashlib.sha256(read_bytes(file)).hexdigest()[:16] if file.is_file() else self.data
        sources = {name: code_digest(PACKAGE / f"{name}.py") for name in choice.CODE}
        return {**self.settings, "label": None, "data": content, "sources": sources}

    def shortened(self, per_task: int) -> LayersEvaluator:
        return with_at_most(self, samples=per_task)

    def evaluate(self, weights: Path, folder: Path) -> dict[str, Any]:
        """See `Evaluator.evaluate`.

        Returns:
            `layers`: expert -> all -> measure -> a value for each layer; and the rest of the verb's report.

        Raises:
            UserError: `layers` failed.
        """
        from scone_pl.training.chain import run_in_own_process

        options = ["--checkpoint", str(weights), "--data", self.data, "--samples", str(self.samples)]
        if status := run_in_own_process(["layers", *options, "--output", str(folder), *self.options]):
            raise UserError(f"{folder}: layers ended with status {status}, see above")
        report = read_json(folder / "layers.json", dict)
        experts = report.pop("experts")
        return {"layers": {expert: {"all": measures} for expert, measures in experts.items()}, **report}

    @classmethod
    def tables(cls, reports: Sequence[Report]) -> list[tuple[str, tuple[Column, ...]]]:
        return []

    @classmethod
    def summary(cls, report: Report) -> str:
        return f"suggested {report['suggested']}"
