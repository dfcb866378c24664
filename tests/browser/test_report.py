"""A report in a real browser, on a phone and on a desk."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from nbllm.core.report import Chart, KeyValues, Measurement, Measurements, Report, Table
from tests.core.test_report import full

REPORT = Report("A report").add(
    Measurements(
        measurements=(Measurement(name="bits per byte", value=2.1, interval=(2.0, 2.2), note="a note"),)
    ),
    Chart(
        x_label="step", y_label="loss", lines=({"name": "training", "x": (1, 2, 3), "y": (3.0, 2.0, 1.0)},)
    ),
    Table(header=("a column", "<b>"), rows=(("x" * 90, 1), ("y", 2))),
    KeyValues(entries=(("fingerprint", "0123456789abcdef" * 8),)),
)


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_cut_off_and_letters_are_legible(browser: Browser, tmp_path, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(REPORT.save(tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width == 390:  # wider ones scroll a table whose words are as long as these
        for box in page.query_selector_all(".nbllm-scroll"):
            assert box.evaluate("box => box.scrollWidth <= box.clientWidth")
    charts = page.locator("figure svg >> visible=true")
    assert charts.count() == 1
    letters = charts.locator("text").first.evaluate("text => text.getBoundingClientRect().height")
    assert letters > 9  # pixels, on the screen
    stacked = page.locator("td[data-label='a column']").first.evaluate(
        "cell => getComputedStyle(cell).display"
    )
    assert stacked == ("flex" if width == 390 else "table-cell")
    page.close()


def test_hostile_text_in_every_field_of_every_section_does_nothing(page: Page, tmp_path):
    hostile = '</script></style><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    page.goto(full(hostile).save(tmp_path / "report.html").as_uri())
    expect(page.locator("h1")).to_have_text(hostile)
    expect(page.locator(".nbllm-examples tbody tr").first).to_be_visible()
    assert page.evaluate("window.hacked") is None and page.locator("img").count() == 0
    scripts = page.locator("script").evaluate_all("scripts => scripts.map((each) => each.type)")
    assert scripts == ["application/json", ""]  # the examples, and what shows them
