"""How long Chromium needs to open a report of MMLU's size: 57 subjects, 14,042 examples.

    python tests/bench/bench_report.py

It prints the size of the page, the seconds until its examples are shown, and those beside an empty report's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))

from nbllm.core.report import Report
from tests.browser.conftest import ARGUMENTS, chromium
from tests.browser.test_examples import mmlu, rows

REPEATS = 7


def seconds(browser, report: Report, path: Path) -> float:
    report.save(path)
    found = []
    for _ in range(REPEATS):
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto(path.as_uri())
        page.locator(".nbllm-examples tbody tr").first.wait_for()
        found.append(time.perf_counter() - begun)
        page.close()
    return statistics.median(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        small = seconds(browser, Report("small").add(rows(2)), Path(folder, "small.html"))
        path = Path(folder, "mmlu.html")
        large = seconds(browser, mmlu(), path)
        browser.close()
        print(f"page of 14,042 examples: {path.stat().st_size / 1e6:.1f} MB")
        print(f"opens in {large:.2f} s, {large / small:.1f} times what 2 examples take ({small:.2f} s)")


if __name__ == "__main__":
    main()
