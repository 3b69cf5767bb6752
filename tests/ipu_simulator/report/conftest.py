"""A real browser, if the machine has one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")  # it holds an event loop, which no other module's tests shall meet
def browser() -> Iterator[Browser]:
    """The system's headless Chromium; nothing is downloaded."""
    path = next((found for command in COMMANDS if (found := shutil.which(command))), None)
    if path is None:
        pytest.skip(f"no browser found (none of {', '.join(COMMANDS)} is on PATH)")
    with sync_playwright() as playwright:
        # Containers run as root, where Chromium's sandbox refuses to start; it opens our own files only.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
