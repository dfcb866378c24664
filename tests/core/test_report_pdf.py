"""PDF by a browser; the tests that print need one."""

from __future__ import annotations

import re
import stat
import sys

import pytest

from nbllm.core.errors import UserError
from nbllm.core.report import KeyValues, Report, Text
from nbllm.core.report.pdf import find_browser

REPORT = Report("A report").add(
    Text(title="Text", text="A few words."), KeyValues(title="Facts", entries=(("a", 1),))
)


def test_without_a_browser_the_way_to_print_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("NBLLM_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"(?s)neither is installed.*report\.html.*print it to a file"):
        REPORT.save(tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a script that is no program")
@pytest.mark.parametrize(
    "script, message", [("exit 3", "exit code 3"), ("echo no >&2", "(?s)exit code 0.*no")]
)
def test_a_browser_that_prints_nothing_is_named(tmp_path, monkeypatch, script, message):
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\n{script}\n")
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("NBLLM_CHROMIUM", str(browser))
    with pytest.raises(UserError, match=message):
        REPORT.save(tmp_path / "report.pdf")
    monkeypatch.setenv("NBLLM_CHROMIUM", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="could not print"):
        REPORT.save(tmp_path / "report.pdf")


@pytest.mark.browser
def test_a_browser_prints_it(tmp_path):
    if find_browser() is None:
        pytest.skip("Chromium is not installed")
    data = REPORT.save(tmp_path / "report.pdf").read_bytes()
    assert data.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", data)) == 1
