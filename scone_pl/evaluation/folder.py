"""What an evaluation leaves on disk.

<output>/
  evaluation.json               benchmark, name of the model, checkpoint, data
  prompts.jsonl                 the chosen items, for `predict`
  round_1/predictions/          pictures of the first sampling, <task>/<key>.png, and settings.json; round_2, ...
                                beside them: generated.json (the command that finished), drawn_from.json (item hashes)
  answers.jsonl                 everything the judge has said, append-only; its .lock
  scores.jsonl                  a record for each (sampling, scoring, item)
  tables/                       table.md, table.tex, table.json, radar, bars, stability as PNG and PDF
  report.html                   to look through
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scone_pl.errors import UserError
from scone_pl.evaluation.benchmark import Benchmark
from scone_pl.evaluation.items import Item
from scone_pl.files import read_json, write_json
from scone_pl.outputs import check_output_folder

_ABOUT = "evaluation.json"
_TABLES = ("table.md", "table.tex", "table.json")
_PLOTS = ("radar.pdf", "radar.png", "bars.pdf", "bars.png", "stability.pdf", "stability.png")


def check_tables_output(folder: Path) -> None:
    """Raises a `UserError` if tables and plots cannot be written to `folder`."""
    check_output_folder(folder, files=(*_TABLES, *_PLOTS))


@dataclass(frozen=True)
class EvaluationFolder:
    """The folder of one model on one benchmark."""

    path: Path
    pictures: tuple[Path, ...] = ()
    """Folders of pictures made elsewhere, one a sampling; empty = our own rounds."""

    @property
    def prompts(self) -> Path:
        return self.path / "prompts.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def scores(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def tables(self) -> Path:
        return self.path / "tables"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def round(self, sampling: int) -> Path:
        """The output_dir of `predict` for a sampling, from 1."""
        return self.path / f"round_{sampling}"

    def pictures_of(self, sampling: int) -> Path:
        """Where the pictures of a sampling lie."""
        return self.pictures[sampling - 1] if self.pictures else self.round(sampling) / "predictions"

    def picture(self, item: Item, sampling: int) -> Path:
        """The file of one picture."""
        return self.pictures_of(sampling) / item.picture_name

    def samplings(self, rounds: int) -> list[int]:
        """The samplings up to `rounds` that have a folder of pictures.

        Raises:
            UserError: there is none.
        """
        if self.pictures:
            for place in self.pictures:
                if not place.is_dir():
                    raise UserError(f"--pictures {place}: no such folder; it must hold TASK/KEY.png")
            return list(range(1, len(self.pictures) + 1))
        found = [n for n in range(1, rounds + 1) if self.pictures_of(n).is_dir()]
        if not found:
            raise UserError(
                f"{self.path}: holds no pictures (round_1/predictions); generate them first, or name their folders "
                "with --pictures"
            )
        return found

    def generation(self, sampling: int) -> dict[str, Any]:
        """What the pictures of a sampling were made with, as far as it is known."""
        file = self.pictures_of(sampling) / "settings.json"
        return read_json(file, dict) if file.exists() else {"pictures": str(self.pictures_of(sampling))}

    @classmethod
    def open(cls, output: str | Path, pictures: Sequence[str] | None, *, remember: bool = True) -> EvaluationFolder:
        """The folder `output`.

        Args:
            output: its path.
            pictures: folders of pictures made elsewhere.
            remember: without `pictures`, take those that were named the last time.
        """
        path = Path(output)
        named = pictures or (_known(path).get("pictures") if remember else None)
        return cls(path, tuple(map(Path, named or [])))

    def check_writable(self) -> None:
        """Raises a `UserError` if anything of what an evaluation writes cannot be written."""
        files = [file.name for file in (self.prompts, self.answers, self.scores, self.report)]
        check_output_folder(self.path, files=[_ABOUT, *files])
        check_tables_output(self.tables)

    def check(self, benchmark: Benchmark) -> None:
        """Raises a `UserError` if the folder holds another benchmark."""
        held = _known(self.path).get("benchmark", benchmark.name)
        if held != benchmark.name:
            raise UserError(f"{self.path}: holds an evaluation of {held!r}; choose another --output")

    def begin(self, benchmark: Benchmark, **about: str | None) -> dict[str, Any]:
        """Records what is evaluated here (None leaves what is known as it is), and returns it.

        Raises:
            UserError: the folder holds the other benchmark.
        """
        self.check(benchmark)
        known = _known(self.path)
        known |= {"benchmark": benchmark.name, **{name: value for name, value in about.items() if value is not None}}
        known["pictures"] = [str(place.resolve()) for place in self.pictures]
        write_json(known, self.path / _ABOUT)
        return known


def _known(path: Path) -> dict[str, Any]:
    """What is recorded about an evaluation, {} before it began.

    Raises:
        UserError: the file is damaged.
    """
    file = path / _ABOUT
    if not file.exists():
        return {}
    known = read_json(file, dict)
    pictures = known.get("pictures", [])
    if not isinstance(pictures, list) or not all(isinstance(folder, str) for folder in pictures):
        raise UserError(f"{file}: `pictures` must be a list of folders; correct it, or choose another --output")
    return known
