"""What the page shows, as HTML fragments with embedded images."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from PIL import Image

from scone_pl.app.comparison import Generated
from scone_pl.app.reading import Reading
from scone_pl.image_files import inline_url
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.visualize import Pixels, dim_blocked, heat_map, scale_to

SIDE = 512
"""Longest side of an image of the page in pixels."""
_TOKEN = 16
"""Pixels of a token in a map."""
CSS = """
.scone figure { margin: 0; display: flex; flex-direction: column; gap: 4px; }
.scone img { width: 100%; image-rendering: pixelated; border-radius: 4px; display: block; }
.scone figcaption { font-size: 12px; line-height: 1.35; color: var(--body-text-color); }
.scone .reference { display: grid; grid-template-columns: 180px 180px minmax(0, 1fr); gap: 16px; padding: 12px 0;
  border-top: 1px solid var(--border-color-primary); align-items: start; }
.scone .reference:first-child { border-top: none; padding-top: 0; }
.scone .layers { display: grid; grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)); gap: 8px; }
.scone .layers .source img { outline: 3px solid var(--color-accent); outline-offset: 1px; }
.scone .compared { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(150px, 220px)); }
.scone .thumbs { display: flex; gap: 6px; } .scone .thumbs img { width: 72px; }
.scone .preview img { width: auto; max-width: 100%; image-rendering: auto; }
.scone p { margin: 0 0 8px; }
@media (max-width: 900px) { .scone .reference { grid-template-columns: 1fr 1fr; }
  .scone .layers { grid-column: 1 / -1; } }
"""
EMPTY = (
    '<div class="scone"><p>Choose an example, or add references and an instruction; then press <b>Read</b>.</p></div>'
)


def reading_html(reading: Reading, bridge: BridgeConfig) -> str:
    """Per reference: the image, what targets see of it, and its similarity before the first layer and behind each."""
    rows = []
    visible = reading.visible(bridge)
    for number, (pixels, seen) in enumerate(zip(reading.references, visible, strict=True), 1):
        large = scale_to(pixels, max(pixels.shape[0], SIDE // 2))
        pale = dim_blocked(large, 1 - seen.weights)
        maps = reading.maps(number - 1)
        layers = "".join(
            _figure(
                _heat(grid),
                f"{'in' if layer < 0 else layer}: {grid.min():.2f} to {grid.max():.2f}",
                "inputs" if layer < 0 else f"layer {layer}",
                marked=layer == bridge.source_layer,
            )
            for layer, grid in enumerate(maps, -1)
        )
        weight = f", mean weight {seen.weights.mean():.2f}" if bridge.mode == "soft" else ""
        rows.append(
            '<div class="reference">'
            + _figure(pixels, f"<b>reference {number}</b>", f"reference {number}")
            + _figure(
                pale,
                f"<b>visible: {seen.visible} of {seen.tokens} tokens</b>{weight}",
                f"visible part of reference {number}",
            )
            + f'<div class="layers">{layers}</div></div>'
        )
    whole, left = reading.tokens_read(None), reading.tokens_read(bridge)
    head = (
        f"<p>{len(reading.pack)} tokens read in {reading.seconds:.2f} s. A target token sees {whole:.0f} reference "
        f"tokens in each layer without the bridge, {left:.1f} in the mean over layers with it. "
        "Right: similarity to the instruction at the decoder's inputs (in) and behind each layer, blue = lowest, red = "
        "highest of the reference; the outlined one is the bridge's.</p>"
    )
    return f'<div class="scone" id="reading">{head}{"".join(rows)}</div>'


def comparison_html(images: Sequence[Generated], expected: int) -> str:
    """Images without and with the bridge, a column a seed."""
    rows = []
    for bridge in (False, True):
        shown = "".join(
            _figure(
                np.asarray(one.image),
                f"<b>seed {one.seed}, bridge {'on' if bridge else 'off'}</b><br>{one.seconds:.2f} s, "
                f"{one.tokens_read:.1f} reference tokens read per layer",
                f"seed {one.seed}, bridge {'on' if bridge else 'off'}",
            )
            for one in images
            if one.bridge == bridge
        )
        rows.append(f'<div class="compared">{shown}</div>')
    done = "" if len(images) == expected else f"<p>{len(images)} of {expected} images ...</p>"
    return f'<div class="scone" id="comparison">{done}{"<p></p>".join(rows)}</div>'


def thumbnails_html(files: Sequence[str]) -> str:
    """Small images of an example."""
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(f'<img alt="reference" src="{inline_url(image.convert("RGB"), 144)}">')
    return f'<div class="scone"><div class="thumbs">{"".join(images)}</div></div>'


def preview_html(image: Image.Image, title: str) -> str:
    """One image grid of a training run."""
    shown = _figure(np.asarray(image), f"<b>{html.escape(title)}</b>", title, side=1600)
    return f'<div class="scone" id="preview"><div class="preview">{shown}</div></div>'


def _heat(grid: np.ndarray) -> Pixels:
    """A map whose colours span its own range, which lies close together."""
    spread = max(float(np.ptp(grid)), 1e-6)
    return heat_map(2 * (grid - grid.min()) / spread - 1, grid.shape[0] * (_TOKEN if grid.shape[0] < SIDE else 1))


def _figure(pixels: Pixels, caption: str, description: str, *, marked: bool = False, side: int = SIDE) -> str:
    """An image with a caption, which may have markup of ours; `description` is plain text."""
    marker = ' class="source"' if marked else ""
    return (
        f'<figure{marker}><img alt="{html.escape(description)}" src="{inline_url(Image.fromarray(pixels), side)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
