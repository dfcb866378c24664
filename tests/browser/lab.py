"""JupyterLab as its user has it: a server of this Python, and a notebook in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:  # the server alone needs no browser
    from playwright.sync_api import Locator, Page

SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}


class Lab:
    """A JupyterLab server.

    Args:
        folder: Its home, its notebooks' folder among others; nothing outside is written.
        settings: User settings by plugin.
    """

    def __init__(self, folder: Path, settings: dict[str, dict[str, object]] | None = None) -> None:
        self.root = folder / "work"
        self.root.mkdir(parents=True)
        self._settings = folder / "config/lab/user-settings"
        for plugin, values in {**SETTINGS, **(settings or {})}.items():
            file = self._settings / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        self.token = "secret"
        self.port = _free_port()
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(self._settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "config/lab/workspaces"),
            "IPYTHONDIR": str(folder / "ipython"),
        }
        self.log = folder / "lab.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                    f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                    f"--ServerApp.root_dir={self.root}", "--LabApp.news_url=None",
                ],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def write(self, name: str, *cells: str) -> Path:
        """Write a notebook of code cells into the lab's folder."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.root / name
        nbformat.write(book, path)
        return path

    @contextlib.contextmanager
    def setting(self, plugin: str, **values: object) -> Iterator[None]:
        """Within the block, pages that are opened have these user settings."""
        file = self._settings / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
        try:
            yield
        finally:
            file.unlink()

    def _wait(self) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=2):
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise AssertionError(f"JupyterLab did not start: {self.log.read_text()}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Notebook:
    """A notebook open in a page."""

    def __init__(self, lab: Lab, page: Page, name: str) -> None:
        self.lab, self.page, self.name = lab, page, name

    def open(self, workspace: str = "") -> Notebook:
        """Open it, in a workspace of its own: another would show what was open there before."""
        workspace = workspace or self.name.removesuffix(".ipynb")
        address = f"{self.lab.url}/lab/workspaces/{workspace}/tree/{self.name}?token={self.lab.token}"
        self.page.goto(address)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        return self.wait_idle()

    def wait_idle(self, timeout: float = 60_000) -> Notebook:
        """Wait until there is a kernel that does nothing, as the status bar says."""
        self.page.wait_for_selector(".jp-StatusBar-Middle, .jp-StatusBar-Left", timeout=timeout)
        self.page.wait_for_function(
            "() => document.querySelector('#jp-main-statusbar').innerText.includes('| Idle')", timeout=timeout
        )
        return self

    def run(self, index: int, *, wait: bool = True, timeout: float = 120_000) -> None:
        """Run a cell, and wait until it has run."""
        cell = self.cell(index)
        cell.locator(".cm-content").click()
        self.page.wait_for_selector(".jp-Notebook.jp-mod-editMode")
        self.page.keyboard.press("Control+Enter")
        prompt = cell.locator(".jp-InputPrompt")
        if wait:
            self.page.wait_for_function(
                "e => /^\\[\\d+\\]:$/.test(e.textContent)", arg=prompt.element_handle(), timeout=timeout
            )

    def is_running(self, index: int) -> bool:
        return "*" in (self.cell(index).locator(".jp-InputPrompt").text_content() or "")

    def cell(self, index: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        return self.cell(index).locator(".jp-Cell-outputArea")

    def panel(self, index: int) -> Locator:
        return self.output(index).locator(".nbllm-panel")

    def save(self) -> None:
        """Save it, and wait until that is done."""
        file = self.lab.root / self.name
        before = file.stat().st_mtime_ns
        self.page.locator('.jp-ToolbarButtonComponent[data-command="docmanager:save"]').click()
        deadline = time.monotonic() + 20
        while file.stat().st_mtime_ns == before or not file.read_text().rstrip().endswith("}"):
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(50)

    def reload(self) -> Notebook:
        """Reload the page."""
        self.page.reload()
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        return self.wait_idle()

    def shut_down(self) -> None:
        """End its kernel, and with it the runs in its threads."""
        address = f"{self.lab.url}/api/sessions?token={self.lab.token}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            sessions = json.load(answer)
        for session in sessions:
            if session["path"] == self.name:
                address = f"{self.lab.url}/api/sessions/{session['id']}?token={self.lab.token}"
                request = urllib.request.Request(address, method="DELETE")
                with urllib.request.urlopen(request, timeout=30):
                    pass

    def menu(self, *path: str) -> None:
        """Choose from the main menu: `menu("Kernel", "Restart Kernel…")`."""
        self.page.locator(".lm-MenuBar-item", has_text=path[0]).first.click()
        for name in path[1:]:
            self.page.locator(".lm-Menu-item", has_text=name).first.click()

    def restart(self) -> Notebook:
        """Restart the kernel, as the menu does."""
        self.menu("Kernel", "Restart Kernel…")
        self.page.locator(".jp-Dialog .jp-mod-warn").click()
        self.page.wait_for_selector(".jp-Dialog", state="detached")
        self.page.wait_for_timeout(500)
        return self.wait_idle()
