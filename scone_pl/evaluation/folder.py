"""Layout of an evaluation's output folder.

```text
<output>/
  evaluation.json               benchmark, name of the model, checkpoint, data
  prompts.jsonl                 the selected items, for `predict`
  round_1/predictions/          images of the first sampling, <task>/<key>.png, and settings.json; round_2, ...
                                beside them: generated.json (the command that finished), drawn_from.json (input hashes)
  answers.jsonl                 the judge's answers, append-only; its .lock
  scores.jsonl                  a record per (sampling, scoring, item)
  tables/                       table.md, table.tex, table.json, radar, bars, stability as PNG and PDF
  report.html                   all items with images and scores
```
"""

from __future__ import annotations

import os
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
    """Output folder of one model on one benchmark."""

    path: Path
    image_folders: tuple[Path, ...] = ()
    """Folders of externally generated images, one per sampling; empty = this folder's rounds."""

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
        """`output_dir` of `predict` for a sampling, from 1."""
        return self.path / f"round_{sampling}"

    def images_of(self, sampling: int) -> Path:
        """Folder of a sampling's images."""
        return self.image_folders[sampling - 1] if self.image_folders else self.round(sampling) / "predictions"

    def image(self, item: Item, sampling: int) -> Path:
        """Path of one image."""
        return self.images_of(sampling) / item.image_name

    def samplings(self, rounds: int) -> list[int]:
        """The samplings up to `rounds` that have a folder of images.

        Raises:
            UserError: there is none.
        """
        if self.image_folders:
            for image_folder in self.image_folders:
                if not image_folder.is_dir():
                    raise UserError(f"--images {image_folder}: no such folder; it must hold TASK/KEY.png")
            return list(range(1, len(self.image_folders) + 1))
        existing = [n for n in range(1, rounds + 1) if self.images_of(n).is_dir()]
        if not existing:
            raise UserError(
                f"{self.path}: has no images (round_1/predictions); generate them first, or give their folders with "
                "--images"
            )
        return existing

    def generation(self, sampling: int) -> dict[str, Any]:
        """Settings with which the images of a sampling were generated, if known."""
        file = self.images_of(sampling) / "settings.json"
        return read_json(file, dict) if file.exists() else {"images": str(self.images_of(sampling))}

    @classmethod
    def open(cls, output: str | Path, image_folders: Sequence[str] | None, *, reuse: bool = True) -> EvaluationFolder:
        """Opens the folder `output`, which need not exist.

        Args:
            output: its path.
            image_folders: folders of externally generated images.
            reuse: without `image_folders`, use those of the previous run.
        """
        path = Path(output)
        folders = image_folders or (_read_metadata(path).get("images") if reuse else None)
        return cls(path, tuple(map(Path, folders or [])))

    def check_writable(self) -> None:
        """Raises `UserError` if any of an evaluation's outputs cannot be written."""
        files = [file.name for file in (self.prompts, self.answers, self.scores, self.report)]
        check_output_folder(self.path, files=[_ABOUT, *files])
        check_tables_output(self.tables)

    def check(self, benchmark: Benchmark) -> None:
        """Raises `UserError` if the folder holds another benchmark."""
        stored = _read_metadata(self.path).get("benchmark", benchmark.name)
        if stored != benchmark.name:
            raise UserError(f"{self.path}: holds an evaluation of {stored!r}; choose another --output")

    def begin(self, benchmark: Benchmark, **about: str | None) -> dict[str, Any]:
        """Updates and returns `evaluation.json`; values of None leave an entry unchanged.

        Raises:
            UserError: the folder holds another benchmark.
        """
        self.check(benchmark)
        metadata = _read_metadata(self.path)
        metadata |= {"benchmark": benchmark.name, **{name: value for name, value in about.items() if value is not None}}
        metadata["images"] = [os.path.realpath(image_folder) for image_folder in self.image_folders]
        write_json(metadata, self.path / _ABOUT)
        return metadata


def _read_metadata(path: Path) -> dict[str, Any]:
    """Content of `evaluation.json`; {} if it does not exist.

    Raises:
        UserError: the file is damaged.
    """
    file = path / _ABOUT
    if not file.exists():
        return {}
    metadata = read_json(file, dict)
    if "pictures" in metadata:  # as older versions wrote it
        metadata["images"] = metadata.pop("pictures")
    image_folders = metadata.get("images", [])
    if not isinstance(image_folders, list) or not all(isinstance(folder, str) for folder in image_folders):
        raise UserError(f"{file}: `images` must be a list of folders; correct it, or choose another --output")
    return metadata


def benchmark_of_folder(path: Path) -> str | None:
    """Name of the benchmark whose evaluation a folder holds; None = it holds none."""
    name = _read_metadata(path).get("benchmark")
    return None if name is None else str(name)


def name_of_scores(file: Path) -> str:
    """Name of the model that these scores belong to, as stored by its evaluation."""
    name = _read_metadata(file.parent).get("name")
    return str(name) if name else file.parent.name if file.name == "scores.jsonl" and file.parent.name else file.stem
