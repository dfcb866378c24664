"""A report in a real JupyterLab: shown, browsed, and still there without a kernel."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.test_examples import HOSTILE

CELLS = (
    """
import nbllm as nb
from nbllm.core.report import Bars, Measurement, Measurements, Report, Rows, Subject
hostile = HERE
subject = Subject(task=hostile, data=hostile, fingerprint="0")
columns = {"question": [f"question {i} {hostile}" for i in range(60)], "predicted": ["a", hostile] * 30,
           "expected": ["a"] * 60, "correct": [1.0, 0.0] * 30, hostile: [hostile] * 60}
report = Report(hostile).add(
    Measurements(title=hostile, measurements=(Measurement(name=hostile, value=0.5, note=hostile, signature=hostile),)),
    Bars(bars=({"name": hostile, "value": 0.5, "count": 60},), x_label=hostile, caption=hostile),
    Rows(subject=subject, columns=columns, num_examples=60, unit=hostile),
)
""".replace("HERE", repr(HOSTILE)),
    "report",
)


def test_a_report_is_browsed_below_itself_and_hostile_text_does_nothing(opened, page):
    notebook = opened(*CELLS)
    notebook.run(0)
    notebook.run(1)
    output = notebook.output(1)
    expect(output.locator(".nbllm-report h1")).to_contain_text("<img src=x")
    browser = output.locator(".nbllm-browser")
    expect(browser.locator("tbody tr")).to_have_count(25)
    browser.get_by_label("Outcome").select_option("wrong")
    expect(browser.get_by_role("status")).to_contain_text("30 of 60")
    browser.get_by_role("button", name="▸ 2", exact=True).click()
    expect(browser.locator(".nbllm-detail .bad").first).to_contain_text("<img")
    browser.get_by_label("Find a text").fill("question 59")
    expect(browser.get_by_role("status")).to_contain_text("1 of 60")
    assert page.evaluate("window.hacked") is None
    assert output.locator("script, img").count() == 0 and "\u202e" not in output.inner_text()

    notebook.save()
    notebook.shut_down()
    notebook.reload()
    expect(output.locator(".nbllm-report h1")).to_contain_text(
        "<img src=x"
    )  # the report itself needs no kernel
    assert page.evaluate("window.hacked") is None
    assert not output.get_by_text("Error displaying widget").is_visible()
