"""The page: components, what happens on a click, and the server behind it."""

from __future__ import annotations

import dataclasses
import functools
import html
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import: no telemetry, no search for newer versions

import gradio as gr

from scone_pl.app.comparison import Generated, compare
from scone_pl.app.previews import find_previews
from scone_pl.app.reading import Reading, read
from scone_pl.app.scenes import Scene
from scone_pl.app.settings import PageSettings
from scone_pl.app.view import CSS, EMPTY, comparison_html, preview_html, reading_html, thumbnails_html
from scone_pl.data.decoding import load_file
from scone_pl.errors import UserError
from scone_pl.model.config import BridgeConfig
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.settings import SamplingConfig

MAX_REFERENCES, MAX_CHARACTERS, MAX_IMAGES = 8, 2000, 4
MAX_FILE, MAX_SEED, MAX_STEPS = "20mb", 2**31, 200
MAX_WAITING = 16
"""Requests in the queue; more are refused."""
MAX_SESSIONS = 64
"""Whose readings are kept."""
_FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
"""Of the system: the themes' own are downloaded."""

_LIVE: dict[str, Any] = {
    "queue": False,
    "api_visibility": "private",
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}
"""Of sliders."""


def build_page(pipeline: SconePipeline, start: PageSettings) -> gr.Blocks:
    """The page of a model. One request at a time uses the model; the sliders do without it."""
    page: gr.Blocks
    with gr.Blocks(title="scone_pl", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# The understanding bridge\n{start.title}")
        with gr.Tab("Bridge"):
            _bridge_tab(pipeline, start)
        if start.previews is not None:
            with gr.Tab("Training run"):
                _previews_tab(start.previews)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


def launch(page: gr.Blocks, host: str, port: int) -> str:
    """Starts the server in a thread and returns the page's address; `page.close()` ends it."""
    gr.processing_utils.async_ssrf_protected_download = _refuse_url
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        show_error=True,
        max_file_size=MAX_FILE,
        footer_links=[],
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        state_session_capacity=MAX_SESSIONS,
        theme=gr.themes.Default(font=_FONTS[0], font_mono=_FONTS[1]),
        css=CSS,
    )
    return f"http://{host}:{port}/"


async def _refuse_url(url: str, cache_dir: str) -> str:
    """In place of gradio's download of a URL that a request names as an uploaded file."""
    raise gr.Error("references are files; URLs are not read here", print_exception=False)


def _as_message(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the user can correct is shown on the page."""

    @functools.wraps(function)
    def shown(*args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), duration=15, print_exception=False) from None

    return shown


def _as_message_stream(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same for a handler that shows several results."""

    @functools.wraps(function)
    def shown(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), duration=15, print_exception=False) from None

    return shown


def _bridge_tab(pipeline: SconePipeline, start: PageSettings) -> None:
    state = gr.State(None, time_to_live=3600)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            files = gr.File(
                label="References, in order",
                file_count="multiple",
                file_types=["image"],
                type="filepath",
                height=120,
                elem_id="references",
            )
            instruction = gr.Textbox(label="Instruction", lines=2, max_length=MAX_CHARACTERS, elem_id="instruction")
            read_button = gr.Button("Read", variant="primary", elem_id="read")
            examples = _examples(start.scenes)
        with gr.Column(scale=5, min_width=480):
            sliders = _bridge_controls(start.bridge, pipeline.model.config.decoder.num_layers)
            maps = gr.HTML(EMPTY, elem_id="maps", padding=True)
            sampling = _sampling_controls(start.sampling)
            with gr.Row():
                generate_button = gr.Button(
                    "Generate with bridge off and on", variant="primary", scale=4, elem_id="generate"
                )
                stop_button = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
            compared = gr.HTML("", elem_id="compared", padding=True)

    def reading_of(paths: list[str] | None, text: str) -> Reading:
        chosen = paths or []
        if len(chosen) > MAX_REFERENCES:
            raise UserError(f"at most {MAX_REFERENCES} references; these are {len(chosen)}")
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"the instruction has {len(text)} characters; at most {MAX_CHARACTERS}")
        height, width = start.sampling.height, start.sampling.width
        return read(pipeline, pipeline.prompts([chosen], [text.strip()], height, width)[0])

    @_as_message
    def on_read(paths: list[str] | None, text: str, *values: Any) -> tuple[Reading, str]:
        bridge = _bridge_of(start.bridge, *values)
        reading = reading_of(paths, text)
        return reading, reading_html(reading, bridge)

    @_as_message
    def on_change(reading: Reading | None, *values: Any) -> tuple[str, int, int]:
        bridge = _bridge_of(start.bridge, *values)
        shown = EMPTY if reading is None else reading_html(reading, bridge)
        return shown, bridge.first_masked_layer, bridge.last_masked_layer

    @_as_message_stream
    def on_generate(
        paths: list[str] | None, text: str, count: float, first: float, steps: float, scale: float, image_scale: float,
        *values: Any,
    ) -> Iterator[tuple[Reading, str, str]]:  # fmt: skip
        bridge = _bridge_of(start.bridge, *values)
        settings = dataclasses.replace(
            start.sampling,
            num_inference_steps=int(steps),
            guidance_scale=float(scale),
            image_guidance_scale=float(image_scale),
        )
        if not (1 <= count <= MAX_IMAGES and 0 <= first <= MAX_SEED and 1 <= steps <= MAX_STEPS):
            raise UserError(f"choose 1 to {MAX_IMAGES} images, a seed from 0 to {MAX_SEED}, 1 to {MAX_STEPS} steps")
        reading = reading_of(paths, text)
        shown = reading_html(reading, bridge)
        images: list[Generated] = []
        yield reading, shown, comparison_html(images, 2 * int(count))
        for image in compare(pipeline, reading, settings, bridge, range(int(first), int(first) + int(count))):
            images.append(image)
            yield reading, shown, comparison_html(images, 2 * int(count))

    model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    gr.on(
        [read_button.click, instruction.submit],
        on_read,
        [files, instruction, *sliders],
        [state, maps],
        **model,
    )
    for slider in sliders:
        slider.change(on_change, [state, *sliders], [maps, *sliders[-2:]], **_LIVE)
    running = generate_button.click(
        on_generate, [files, instruction, *sampling, *sliders], [state, maps, compared], **model
    )
    stop_button.click(None, cancels=[running], api_visibility="private")
    for button, paths, text in examples:
        # Values of the server, not of the browser: the page may read no other file.
        chosen = functools.partial(_chosen, paths, text)
        button.click(chosen, None, [files, instruction], queue=False, api_visibility="private").then(
            on_read, [files, instruction, *sliders], [state, maps], **model
        )


def _chosen(paths: list[str], text: str) -> tuple[list[str], str]:
    return paths, text


def _examples(scenes: list[Scene]) -> list[tuple[gr.Button, list[str], str]]:
    """Buttons, with the references and the instruction that they choose."""
    buttons = []
    if scenes:
        gr.Markdown("Examples: choose a candidate")
    for scene in scenes:
        gr.HTML(thumbnails_html(scene.files), padding=False)
        with gr.Row():
            for label, text in scene.choices:
                button = gr.Button(label, size="sm", elem_classes="example", min_width=120)
                buttons.append((button, scene.files, text))
    return buttons


def _bridge_controls(bridge: BridgeConfig, num_layers: int) -> list[Any]:
    """In the order of `_bridge_of`."""
    last = num_layers - 1
    with gr.Row():
        threshold = gr.Slider(-1, 1, bridge.threshold, step=0.005, label="Threshold", elem_id="threshold")
        quantile = gr.Slider(0, 0.99, bridge.quantile or 0, step=0.01, label="or quantile (0: none)")
    with gr.Row():
        mode = gr.Radio(["hard", "soft"], value=bridge.mode, label="Mask", elem_id="mode")
        temperature = gr.Slider(0.005, 0.5, bridge.temperature, step=0.005, label="Temperature (soft)")
    with gr.Row():
        source = gr.Slider(
            -1, last - 1, bridge.source_layer, step=1, label="Read behind (-1: inputs)", elem_id="source"
        )
        first = gr.Slider(
            0, last, bridge.first_masked_layer, step=1, label="First masked layer", elem_id="first_masked"
        )
        final = gr.Slider(0, last, bridge.last_masked_layer, step=1, label="Last masked layer")
    return [threshold, quantile, mode, temperature, source, first, final]


def _sampling_controls(sampling: SamplingConfig) -> list[Any]:
    """Images, first seed, steps, guidance by instruction and by references."""
    with gr.Row():
        images = gr.Number(2, label="Images", precision=0, minimum=1, maximum=MAX_IMAGES, min_width=100)
        seed = gr.Number(
            sampling.seed or 0, label="First seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=100
        )
        steps = gr.Number(
            sampling.num_inference_steps, label="Steps", precision=0, minimum=1, maximum=MAX_STEPS, min_width=100
        )
        text = gr.Number(sampling.guidance_scale, label="Text guidance", minimum=0, maximum=20, step=0.5, min_width=100)
        image = gr.Number(
            sampling.image_guidance_scale, label="Image guidance", minimum=0, maximum=20, step=0.5, min_width=100
        )
    return [images, seed, steps, text, image]


def _bridge_of(
    base: BridgeConfig,
    threshold: float,
    quantile: float,
    mode: Any,
    temperature: float,
    source: float,
    first: float,
    last: float,
) -> BridgeConfig:
    """The bridge of the sliders; layers that would come before the one that is read move after it."""
    first = max(int(first), int(source) + 1)
    return dataclasses.replace(
        base,
        threshold=threshold,
        mode=mode,
        temperature=temperature,
        source_layer=int(source),
        first_masked_layer=first,
        last_masked_layer=max(int(last), first),
        quantile=quantile or None,
        adaptive_threshold=None,
        threshold_dtype="float32",
        drop_blocked=base.drop_blocked and mode == "hard",
        apply_mask=True,
    )


def _previews_tab(run: Path) -> None:
    """A slider over the previews of a run; those that are drawn meanwhile appear as it is moved."""
    number = len(find_previews(run))
    gr.Markdown(f"Previews of `{run.resolve().name}`: references, target, generated image at each validation.")
    slider = gr.Slider(1, max(2, number), number, step=1, label="Preview", elem_id="preview_slider")

    @_as_message
    def show(chosen: float) -> tuple[Any, str]:
        previews = find_previews(run)
        at = min(max(int(chosen), 1), len(previews))
        preview = previews[at - 1]
        title = f"{preview.title} ({at} of {len(previews)})"
        return gr.update(maximum=max(2, len(previews))), preview_html(load_file(preview.file), title)

    shown = gr.HTML(show(number)[1])
    slider.change(show, slider, [slider, shown], **_LIVE)
