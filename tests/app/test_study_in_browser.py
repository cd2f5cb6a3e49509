"""The page of a blind study in a real browser: orders, choices by click and key, what is saved, and its way back."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, console_errors, requested, until
from PIL import Image
from running import ROOT

from scone_pl.__main__ import main
from scone_pl.evaluation.blind_study.key import StudyKey

sys.path.append(str(ROOT / "tests/evaluation"))
from study_runs import NAMES, colour, write_runs

pytestmark = pytest.mark.slow


def begin(browser: Any, page: Path, rater: str) -> None:
    browser.get(page.as_uri())
    browser.find_element("id", "rater").send_keys(rater, "\n")
    until(
        browser, lambda b: b.find_element("id", "question").is_displayed() or b.find_element("id", "end").is_displayed()
    )


def shown(browser: Any) -> list[tuple[int, int, int]]:
    """Colours of the images on the screen, in order."""
    urls = [image.get_attribute("src") for image in browser.find_elements("css selector", "#images img")]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).getpixel((3, 3)) for url in urls]


def model_of(pixel: tuple[int, int, int]) -> str:
    return NAMES[(pixel[0] - 40) // 60]


def test_a_study_from_page_to_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["study-page", "--runs", *write_runs(tmp_path), "--output", str(out)]) == 0
    page, key = out / "study.html", StudyKey.read(out / "study_key.json")
    with chromium(tmp_path / "browser") as browser:
        orders = {}
        for rater in ("ann", "bob"):
            begin(browser, page, rater)
            orders[rater] = []
            for number in range(6):
                until(browser, lambda b, n=number: f"{n + 1} of 6" in b.find_element("id", "position").text)
                assert "</script>" in browser.find_element("id", "instruction").text
                colours = shown(browser)
                orders[rater].append(tuple(colours))
                assert sorted(map(model_of, colours)) == sorted(NAMES)
                keen = [model_of(pixel) for pixel in colours].index("keen")
                if (rater, number) == ("ann", 2):  # a mistake, taken back
                    browser.find_element("id", "none").click()
                    browser.find_element("id", "back").click()
                    until(browser, lambda b: "3 of 6" in b.find_element("id", "position").text)
                if (rater, number) == ("bob", 5):
                    browser.find_element("id", "none").click()
                elif number % 2:
                    browser.find_element("tag name", "body").send_keys(str(keen + 1))
                else:
                    browser.find_elements("css selector", "#images button")[keen].click()
                if (rater, number) == ("bob", 2):
                    screenshot(browser, tmp_path)
                    begin(browser, page, rater)  # reloaded: it goes on where it was
            until(browser, lambda b: b.find_element("id", "end").is_displayed())
            browser.find_element("id", "save_all").click()
            saved = until(browser, lambda _, name=rater: [*(tmp_path / "browser").glob(f"choices_*_{name}.json")])
            content = json.loads(saved[0].read_text())
            assert (content["study"], content["rater"], len(content["choices"])) == (key.study, rater, 6)
        assert orders["ann"] != orders["bob"]
        assert sorted(map(sorted, orders["ann"])) == sorted(map(sorted, orders["bob"]))
        assert len({model_of(colours[0]) for colours in orders["ann"] + orders["bob"]}) == 3
        expected = {colour(name, item.task, item.key) for item in key.items for name in NAMES}
        assert {pixel for colours in orders["ann"] for pixel in colours} == expected
        assert requested(browser) == set()
        assert console_errors(browser) == []
    files = sorted(str(file) for file in (tmp_path / "browser").glob("choices_*.json"))
    capsys.readouterr()
    assert main(["study-choices", "--choices", *files, "--key", str(out / "study_key.json"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["choices"], result["none"], result["raters"]) == (11, 1, 2)
    assert result["systems"]["keen"]["fraction"] == 1
    assert result["agreement"]["columns"]["SC"]["best"]["fraction"] == 1


def screenshot(browser: Any, tmp_path: Path) -> None:
    browser.save_screenshot(str(Path(os.environ.get("SCONE_SCREENSHOTS", tmp_path)) / "study.png"))
