"""The folder of predicted images: which are finished, and with which settings they were made.

```text
<output_dir>/predictions/
  settings.json             the settings of every image in this folder
  [task_type/]key.png       one per prompt, whole or not there
```
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from scone_pl import deprecated
from scone_pl.data.decoding import decode_rgb, read_encoded
from scone_pl.data.sample import BrokenSampleError, Sample
from scone_pl.data.seeding import seed_of
from scone_pl.errors import UserError
from scone_pl.files import read_json, write_json
from scone_pl.sampling.settings import SamplingConfig


def image_seed(seed: int, sampling_round: int, key: str, task_type: str = "") -> int:
    """Seed of an image's noise, independent of its rank, its neighbours and interruptions."""
    return seed_of("picture", seed, sampling_round, task_type, key)


@dataclass(frozen=True)
class PredictionFolder:
    """The folder of predicted images."""

    path: Path

    def file_of(self, sample: Sample) -> Path:
        """The image file of a sample."""
        return self.path / str(sample.metadata.get("task_type", "")) / f"{sample.key}.png"

    def is_finished(self, sample: Sample) -> bool:
        """Whether a sample's image exists, is complete to its last chunk, and can be decoded."""
        try:
            content = read_encoded(self.file_of(sample))
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                image.verify()  # the checksum of every chunk, which decoding alone does not ask for
            decode_rgb(content)
        except (UserError, BrokenSampleError, OSError, SyntaxError, ValueError):
            return False
        return True

    def begin(self, settings: dict[str, Any], *, write: bool) -> None:
        """Records the settings of the images; `write` on one rank only.

        Raises:
            UserError: the folder holds images made with other settings.
        """
        file = self.path / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not file.exists():
            if write:
                write_json(settings, file)
            return
        try:
            before = read_json(file, dict)
        except UserError as error:
            raise UserError(f"{error}; choose another --output_dir, or move {self.path} aside") from None
        before.setdefault("exif_orientation", "ignore")  # what it was before it was a setting
        before.setdefault("adapters", [])
        if "seed" in before and isinstance(before.get("sampling"), dict):  # as it was before it became part of them
            old = {"sampling_seed": before.pop("seed"), "sampling": before["sampling"]}
            before["sampling"] = deprecated.rename_settings(old, warn=False)["sampling"]
        if isinstance(before.get("sampling"), dict):  # settings that did not exist had the effect of their defaults
            defaults = json.loads(json.dumps(dataclasses.asdict(SamplingConfig())))
            asked = {name: defaults.get(name) for name in settings.get("sampling", {})}
            before["sampling"] = {**asked, **before["sampling"]}
        other = [name for name in settings if before.get(name) != settings[name]]
        if other:
            name = other[0]
            raise UserError(
                f"{self.path}: holds images made with other settings ({name} was {before.get(name)}, now "
                f"{settings[name]}); choose another --output_dir, or move that folder aside"
            )
