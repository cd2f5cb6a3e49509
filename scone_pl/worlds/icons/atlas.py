"""Atlases: named subjects, each drawn three times.

A folder holds `names.json`, a list of `{"name": ..., "category": ...}`, and the sheets `flat.webp`, `3d.webp` and
`noto.webp` with 32 square RGBA cells of any side in a row; cell i shows entry i. `flat` and `3d` are two views of one
identity, `noto` is another identity of the same name.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from scone_pl import files
from scone_pl.errors import UserError
from scone_pl.worlds.icons.hues import tinted

DRAWINGS = ("flat", "3d", "noto")
IDENTITIES: dict[str, tuple[str, ...]] = {"fluent": ("flat", "3d"), "noto": ("noto",)}
"""Identity -> its views, which are drawings."""
SHIPPED = Path(__file__).parent / "atlas"
NAMES = "names.json"
_COLUMNS = 32
_MAX_CELLS = 10_000
_MAX_SIDE = 1024
_OPAQUE = 40
"""Alpha over which a pixel belongs to a drawing."""
_UNSEEN = 0.1
"""Fraction of the names that no training set shows."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """Named subjects and their drawings."""

    names: tuple[str, ...]
    """Lower case, words separated by one space."""
    categories: tuple[str, ...]
    """Of each name."""
    cells: Mapping[str, np.ndarray]
    """Drawing -> (names, side, side, 4) uint8 RGBA."""

    @classmethod
    def read(cls, folder: Path) -> Atlas:
        """An atlas of any number of names and any cell size.

        Raises:
            UserError: a file is missing or does not fit the others.
        """
        entries = files.read_json(folder / NAMES, list)
        if not 0 < len(entries) <= _MAX_CELLS:
            raise UserError(f"{folder / NAMES}: {len(entries)} names; an atlas has 1 to {_MAX_CELLS}")
        names, categories = [], []
        for number, entry in enumerate(entries):
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name.split():
                raise UserError(f"{folder / NAMES}: entry {number} must be an object with a name")
            names.append(" ".join(name.lower().split()))
            categories.append(str(entry.get("category", "")))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{folder / NAMES}: the name {twice!r:.80} comes twice")
        cells = {drawing: _cells(folder / f"{drawing}.webp", len(names)) for drawing in DRAWINGS}
        return cls(tuple(names), tuple(categories), cells)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All indices in an order that depends on the names alone, not on what else an atlas holds."""
        return tuple(sorted(range(len(self.names)), key=lambda i: sha256(self.names[i].encode()).digest()))

    def chosen(self, count: int = 0, *, unseen: bool = False) -> tuple[int, ...]:
        """Indices to draw episodes from: those for training, or the tenth that is `unseen` there; the first `count`.

        Raises:
            UserError: there are fewer.
        """
        held_out = round(_UNSEEN * len(self.order))
        pool = self.order[len(self.order) - held_out :] if unseen else self.order[: len(self.order) - held_out]
        if count > len(pool):
            raise UserError(
                f"world.names is {count}, but this atlas has {len(pool)} {'un' if unseen else ''}seen names"
            )
        return pool[:count] if count else pool

    @lru_cache(maxsize=20_000)  # noqa: B019 (an atlas lives as long as its process)
    def sprite(
        self, index: int, drawing: str, hue: str, side: int, *, flip: bool = False, angle: int = 0
    ) -> np.ndarray:
        """(h, w, 4) float32: RGB premultiplied by alpha, then alpha, 0 to 255 and 0 to 1; cut to what is opaque.

        Args:
            index: of the name.
            drawing: one of `DRAWINGS`.
            hue: `natural` or one of `hues.HUES`.
            side: of the longer side in pixels.
            flip: left and right exchanged.
            angle: counterclockwise, in degrees.
        """
        image = Image.fromarray(self._cell(index, drawing, hue))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if angle:
            image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        opaque = np.asarray(image)[..., 3] > _OPAQUE
        rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
        image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        scale = side / max(image.size)
        width, height = (max(1, round(scale * length)) for length in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.HAMMING), dtype=np.float32)
        alpha = pixels[..., 3:] / 255
        sprite = np.concatenate([pixels[..., :3] * alpha, alpha], axis=-1)
        sprite.flags.writeable = False
        return sprite

    @lru_cache(maxsize=20_000)  # noqa: B019
    def _cell(self, index: int, drawing: str, hue: str) -> np.ndarray:
        return tinted(self.cells[drawing][index], hue)


@cache
def read_atlas(folder: str = "") -> Atlas:
    """The atlas in a folder; without one, the shipped one."""
    return Atlas.read(Path(folder) if folder else SHIPPED)


def compact(source: Path, folder: Path, side: int = 40, quality: int = 82) -> None:
    """Writes the atlas in `source` with smaller cells; licence notices are the caller's to keep."""
    atlas = Atlas.read(source)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(files.read_bytes(source / NAMES), folder / NAMES)
    for drawing, cells in atlas.cells.items():
        sheet = Image.new("RGBA", (_COLUMNS * side, -(-len(cells) // _COLUMNS) * side))
        for i, cell in enumerate(cells):
            small = Image.fromarray(cell).resize((side, side), Image.Resampling.HAMMING)
            sheet.paste(small, (i % _COLUMNS * side, i // _COLUMNS * side))
        stream = io.BytesIO()
        sheet.save(stream, format="WEBP", quality=quality, alpha_quality=80, method=6)
        files.write_bytes(stream.getvalue(), folder / f"{drawing}.webp")


def _cells(file: Path, count: int) -> np.ndarray:
    """(count, side, side, 4) uint8 of a sheet."""
    data = files.read_bytes(file)
    try:
        sheet = Image.open(io.BytesIO(data), formats=("WEBP", "PNG")).convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: not a readable image ({error!s:.100})") from None
    side, rest = divmod(sheet.width, _COLUMNS)
    if rest or not side or side > _MAX_SIDE or sheet.height < side * -(-count // _COLUMNS):
        raise UserError(
            f"{file}: {sheet.width} x {sheet.height} pixels do not hold {count} square cells, {_COLUMNS} a row"
        )
    pixels = np.asarray(sheet)
    rows = sheet.height // side
    cells: np.ndarray = pixels[: rows * side].reshape(rows, side, _COLUMNS, side, 4).swapaxes(1, 2)
    cells = cells.reshape(-1, side, side, 4)[:count]
    shown = (cells[..., 3] > _OPAQUE).any((1, 2))
    if not shown.all():
        raise UserError(f"{file}: cell {int(shown.argmin())} is empty, but {NAMES} names it")
    return cells
