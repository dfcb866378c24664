"""A real browser, and a real JupyterLab for it to open."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from nbllm.widgets.modules import STATIC
from tests.browser.lab import Lab, Notebook

ARGUMENTS = [
    "--no-sandbox",  # root, as in a container, has none
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


expect.set_options(timeout=20_000)  # milliseconds: other work on the machine may stop a browser for seconds


def chromium() -> str | None:
    """Return Chromium's path: NBLLM_CHROMIUM, or the first of its usual names that is installed."""
    named = os.environ.get("NBLLM_CHROMIUM")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return named or next(filter(None, found), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        text = "Chromium is not installed: apt-get install chromium, or set NBLLM_CHROMIUM"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1200, "height": 1000}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A page of its own; an error that nobody caught in it fails the test."""
    page = context.new_page()
    page.set_default_timeout(20_000)
    return page


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return "text/javascript" if str(path).endswith(".js") else super().guess_type(path)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def static_url() -> Iterator[str]:
    """Where the browser finds the modules of nbllm/widgets/static: "http://127.0.0.1:1234/"."""
    handler = functools.partial(Quiet, directory=str(STATIC))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture
def opened(lab: Lab, page: Page, request: pytest.FixtureRequest) -> Iterator[Callable[..., Notebook]]:
    """Open a notebook of given cells, named after the test; its kernel, and the runs in it, end with the test."""
    notebooks = []

    def opened(*cells: str) -> Notebook:
        name = re.sub(r"\W+", "-", request.node.name).strip("-") + ".ipynb"
        lab.write(name, *cells)
        notebooks.append(Notebook(lab, page, name).open(name.removesuffix(".ipynb")))
        return notebooks[-1]

    yield opened
    for notebook in notebooks:
        notebook.shut_down()
