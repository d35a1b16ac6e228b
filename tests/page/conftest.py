"""A browser for the report page: Playwright drives a Chromium that is already on this machine.

Without one these tests are skipped; `make test-page` gives --require-page, and then that is an error.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-page", action="store_true", help="the browser of the page's tests must be here: not a skip"
    )


def chromium() -> str | None:
    """CHROMIUM, or one on the PATH."""
    given = os.environ.get("CHROMIUM")
    found = (shutil.which(name) for name in NAMES)
    return given or next(filter(None, found), MAC if Path(MAC).exists() else None)


def missing() -> str | None:
    """What is not here, with the command that brings it."""
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed; make test-page installs it"
    if chromium() is None:
        return "no Chromium on the PATH; apt-get install chromium, or name one with CHROMIUM=/path/to/it"
    return None


def pytest_configure(config: pytest.Config) -> None:
    reason = missing()
    if config.getoption("--require-page", default=False) and reason:
        raise pytest.UsageError(f"--require-page: {reason}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = missing()
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here if reason else ():
        item.add_marker(pytest.mark.skip(reason=f"the report page in a browser: {reason}"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox does not run as root, which is what a container usually is.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield opened
        opened.close()
