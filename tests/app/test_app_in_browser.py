"""The page in a real browser: examples, sliders without a forward pass, both images, messages, previews."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, console_errors, requested, until
from PIL import Image

from scone_pl.app.settings import open_model, page_settings
from scone_pl.cli.app import MINI_WEIGHTS
from scone_pl.cli.project import recipes_folder
from scone_pl.sampling.pipeline import SconePipeline
from scone_pl.sampling.visualize import save_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> SconePipeline:
    return open_model(recipes_folder() / MINI_WEIGHTS, "cpu", None)


@pytest.fixture(scope="module")
def address(model: SconePipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs gradio: tests/app/requirements.txt")
    folder = tmp_path_factory.mktemp("app")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    from scone_pl.app.page import build_page, launch

    for step in (20, 40):
        save_image(np.full((20, 60, 3), step, np.uint8), folder / f"run/previews/step-{step:06d}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(model, dataclasses.replace(page_settings(model, None, folder), previews=folder / "run"))
    yield launch(page, "127.0.0.1", port)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        opened.get(address)
        yield opened


def text_of(browser: Any, element: str) -> str:
    return str(browser.find_element("id", element).text)


def set_number(browser: Any, element: str, value: float) -> None:
    """Types into the field of a slider."""
    field = browser.find_element("css selector", f"#{element} input[type=number]")
    field.send_keys("\ue009a\ue000", str(value), "\ue004")  # control + a, tab


def number(browser: Any, element: str) -> float:
    return float(browser.find_element("css selector", f"#{element} input[type=number]").get_attribute("value"))


def test_a_candidate_is_read_and_a_threshold_costs_no_forward_pass(browser: Any, model: SconePipeline) -> None:
    passes = []
    hook = model.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        until(browser, lambda b: len(b.find_elements("css selector", ".example")) == 8)
        browser.find_element("css selector", ".example").click()
        until(browser, lambda b: "visible: " in text_of(b, "maps"))
        assert len(passes) == 1
        assert browser.find_element("css selector", "#instruction textarea").get_attribute("value").startswith("draw")
        set_number(browser, "threshold", -1)
        until(browser, lambda b: "visible: 32 of 32 tokens" in text_of(b, "maps"))
        set_number(browser, "threshold", 1)
        until(browser, lambda b: "visible: 0 of 32 tokens" in text_of(b, "maps"))
        set_number(browser, "source", 3)
        until(browser, lambda b: b.find_element("css selector", "#maps .source img").get_attribute("alt") == "layer 3")
        until(browser, lambda b: number(b, "first_masked") == 4)  # which has to come behind it
        assert len(passes) == 1
        set_number(browser, "source", 0)
        set_number(browser, "threshold", 0.2)
    finally:
        hook.remove()


def test_images_with_the_bridge_off_and_on(browser: Any) -> None:
    browser.find_element("id", "generate").click()
    until(browser, lambda b: len(b.find_elements("css selector", "#compared img")) == 4)
    captions = [figure.text for figure in browser.find_elements("css selector", "#compared figcaption")]
    assert ["bridge on" in caption for caption in captions] == [False, False, True, True]
    assert all(" s, " in caption and "reference tokens read per layer" in caption for caption in captions)
    assert "32.0 reference tokens" in captions[0]
    assert "32.0 reference tokens" not in captions[2]


def test_screenshot(browser: Any, tmp_path: Path) -> None:
    """The page has a size and something to see; SCONE_SCREENSHOTS=docs writes the picture of docs/app.md."""
    file = Path(os.environ.get("SCONE_SCREENSHOTS", tmp_path)) / "app.png"
    before = browser.get_window_size()
    browser.set_window_size(1060, 1960)
    set_number(browser, "first_masked", 1)
    until(browser, lambda b: "15.4 in the mean over layers" in text_of(b, "maps"))
    browser.execute_script("window.scrollTo(0, 0)")
    browser.save_screenshot(str(file))
    browser.set_window_size(before["width"], before["height"])
    with Image.open(file) as image:
        assert image.width > 1000
        assert np.asarray(image).std() > 5


def test_mistakes_are_messages(browser: Any) -> None:
    box = browser.find_element("css selector", "#instruction textarea")
    box.send_keys("\ue009a\ue000", "paint <b>me</b>")
    browser.find_element("id", "read").click()
    message = until(browser, lambda b: b.find_element("css selector", ".toast-body").text)
    assert "not in this model's vocabulary" in message
    assert "<b>me</b>" in message
    assert "Traceback" not in message


def test_previews_by_step(browser: Any, address: str, tmp_path: Path) -> None:
    browser.find_elements("css selector", "button[role=tab]")[1].click()
    until(browser, lambda b: "step 40 (2 of 2)" in text_of(b, "preview"))
    set_number(browser, "preview_slider", 1)
    until(browser, lambda b: "step 20 (1 of 2)" in text_of(b, "preview"))


def test_nothing_leaves_the_machine(browser: Any, address: str) -> None:
    urls = requested(browser)
    assert urls
    assert {url.split("/")[2] for url in urls} == {address.split("/")[2]}
    assert console_errors(browser) == []


@pytest.mark.parametrize("file", ["/etc/passwd", "pyproject.toml", "../pyproject.toml", "http://127.0.0.1:1/x.png"])
def test_other_files_are_not_served(address: str, file: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{address}gradio_api/file={file}", timeout=20)
    assert error.value.code in (403, 404)


def test_a_url_in_place_of_an_upload_is_refused(address: str) -> None:
    import gradio
    from gradio import processing_utils

    upload = {"path": "http://example.invalid/a.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(gradio.Error, match="URLs are not read here"):
        asyncio.run(processing_utils.async_move_files_to_cache(upload, gradio.File(), check_in_upload_folder=True))
