"""Headless Chromium for tests of pages, or a skip with the reason why there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1400,1500"),
)
_PATIENCE = 60
"""Seconds; a page of a busy machine is slow."""


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A browser with a fresh profile in `folder`, where its downloads go as well."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: tests/app/requirements.txt")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*_ARGUMENTS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def until(browser: Any, condition: Callable[[Any], T]) -> T:
    """Waits for a condition that is true, and returns its value."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    ignored = (NoSuchElementException, StaleElementReferenceException)
    waiting = WebDriverWait(browser, _PATIENCE, poll_frequency=0.1, ignored_exceptions=ignored)
    return waiting.until(condition)  # type: ignore[no-any-return]  # selenium's own type is Any


def requested(browser: Any) -> set[str]:
    """URLs of all requests over the network so far."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url for url in urls if url.startswith(("http", "ws"))}


def console_errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
