"""Headless Chromium for pages that must work in a browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(folder: Path, width: int = 1280, dark: bool = False) -> Iterator[Any]:
    """A browser whose page is `width` wide, in the light or the dark; its profile is made in `folder`."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
    ):  # fmt: skip
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:  # the window has a least width of 500 on its own
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        yield browser
    finally:
        browser.quit()


def severe(browser: Any) -> list[Any]:
    """What the console says of errors."""
    return [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def too_wide(browser: Any) -> int:
    """Pixels by which the page is wider than what a window shows of it."""
    return browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")


CUT = """
const wide = document.documentElement.clientWidth, cut = [];
for (const e of document.querySelectorAll("svg, canvas, img, table, pre, select, input, p, li")) {
  if (!e.getClientRects().length) continue;
  let seen = e, box = e.parentElement;
  for (; box; box = box.parentElement) {
    const how = getComputedStyle(box).overflowX;
    if (how === "auto" || how === "scroll") { seen = box; break; }
    if (how !== "visible" && e.getBoundingClientRect().right > box.getBoundingClientRect().right + 1) break;
  }
  if (box && seen === e || seen.getBoundingClientRect().right > wide + 1) cut.push(e.outerHTML.slice(0, 80));
}
return cut;
"""


def cut_off(browser: Any) -> list[str]:
    """What reaches past the window or its box where nothing lets a reader scroll to it."""
    return browser.execute_script(CUT)
