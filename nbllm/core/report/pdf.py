"""A report as PDF: its HTML page printed by a browser that is installed, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nbllm.core.errors import UserError
from nbllm.core.report.html import to_page

if TYPE_CHECKING:
    from nbllm.core.report.report import Report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_SECONDS = 120
_OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-pdf-header-footer",
)


def to_pdf(report: Report) -> bytes:
    """Return a report as PDF, its HTML page as Chromium or Chrome prints it.

    Raises:
        UserError: No such browser is installed, or it printed nothing.
    """
    browser = find_browser()
    if browser is None:
        raise UserError(
            "A PDF is printed by Chromium or Chrome, and neither is installed.",
            hint='Save "report.html", open it in a browser and print it to a file; or install Chromium, or name '
            "a browser in the environment variable NBLLM_CHROMIUM.",
        )
    with tempfile.TemporaryDirectory(prefix="nbllm-pdf-") as folder:
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_text(to_page(report), "utf-8")
        _print(browser, source, target)
        return target.read_bytes()


def find_browser() -> str | None:
    """Return `$NBLLM_CHROMIUM`, or the path of the first Chromium or Chrome that is installed."""
    named = os.environ.get("NBLLM_CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def _print(browser: str, source: Path, target: Path) -> None:
    command = [browser, *_OPTIONS, f"--user-data-dir={source.parent / 'profile'}", f"--print-to-pdf={target}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium refuses to start as root with one, as in a container
    try:
        done = subprocess.run(  # noqa: S603 (the person's own browser; the page runs no script and fetches nothing)
            [*command, source.as_uri()], capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"The browser could not print the report: {error}.", where=browser) from error
    if done.returncode or not target.is_file():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"The browser ended with exit code {done.returncode} and printed nothing.",
            where=browser,
            hint=said[-1] if said else None,
        )
