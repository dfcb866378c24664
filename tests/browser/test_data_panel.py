"""The panel of a preparation, in a real JupyterLab."""

from __future__ import annotations

import os
import re

import pytest
from playwright.sync_api import expect

PREPARE = r"""
import nbllm as nb
hostile = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
base = "The river rose in the night and the old bridge that led to the mill was carried off with its stones. "
ends = ("The children like it and wave to everyone.", "A ferry from the south is expected with the spring.",
        "Every barrel of flour is weighed before it may be carried over.",
        "Old people stay at home and listen to what the others tell.")
good = [f"{base}In {name} they have to cross by boat, and nobody knows when the work of {name} will be done. {end}"
        for name, end in zip(("Arden", "Birch", "Cole", "Dale"), ends)]
copies = [good[0].replace("nobody", "no one"), good[1].replace("boat", "raft")]
short = ["Too short to be kept with the rest " + hostile, "That is also too short to be of use."]
marks = ["### ### ## # the and of to " * 20 + hostile]
steps = [nb.data.quality("gopher", min_words=30), nb.data.dedup(threshold=0.6)]
clean = nb.data.prepare(good + copies + short + marks, steps)
clean
"""


@pytest.fixture
def notebook(opened):
    notebook = opened(PREPARE, "hostile in nb.data.prepare.__doc__")
    notebook.run(0, timeout=180_000)
    return notebook


@pytest.fixture
def panel(notebook):
    shown = notebook.panel(0)
    expect(shown.locator(".data-head")).to_contain_text("documents kept", timeout=60_000)
    return shown


def picture(panel, name):
    """Keep a picture where NBLLM_PICTURES says."""
    if folder := os.environ.get("NBLLM_PICTURES"):
        panel.screenshot(path=f"{folder}/{name}.png")


def test_a_preparation_is_looked_at_and_its_thresholds_are_moved(notebook, panel):
    page = panel.page
    expect(panel.locator(".data-steps tbody tr th")).to_contain_text(["(raw)", "gopher"])
    picture(panel, "steps")

    panel.get_by_role("button", name="words, at least", exact=True).click()  # opens what the rule removed
    documents = panel.locator(".data-document")
    expect(documents.first).to_contain_text("threshold 30")
    expect(panel.locator(".data-document pre").first).to_contain_text(re.compile("short"))
    panel.get_by_label("Which documents").select_option("gopher: hashes per word, at most")
    expect(panel.locator(".data-document mark").first).to_have_text("###")
    picture(panel, "documents")

    panel.get_by_role("tab", name="Thresholds").click()
    outlook = panel.locator(".data-outlook")
    expect(outlook).to_contain_text("Nothing is run again")
    slider = panel.get_by_label("Threshold of gopher: words, at least", exact=True)
    slider.fill("0")
    expect(outlook).to_contain_text("documents would be kept")
    expect(outlook).to_contain_text("cannot be told without a new run")
    number = panel.get_by_label("Threshold of gopher: mean word length, at least, as a number")
    number.fill("5")
    number.press("Tab")
    expect(outlook).to_contain_text(re.compile(r"^[0-3] of 9 documents would be kept"))
    picture(panel, "thresholds")

    panel.get_by_role("tab", name="Code").click()
    expect(panel.locator(".data-code")).to_contain_text(
        re.compile(r'STEPS\["gopher"\]\(min_words=\d+, min_word_length=5')
    )
    panel.get_by_role("tab", name="Documents").click()
    panel.get_by_label("Which documents").select_option("newly dropped")
    expect(documents.first).to_contain_text("bridge")

    panel.get_by_role("tab", name="Duplicates").click()
    pairs = panel.locator(".data-pair")
    expect(pairs).to_have_count(2)
    expect(pairs.first.locator("mark").first).to_be_visible()
    expect(panel.get_by_role("tabpanel", name="Duplicates")).to_contain_text("Jaccard 0.")
    picture(panel, "duplicates")
    panel.get_by_role("tab", name="Audit").click()
    expect(panel.get_by_role("tabpanel", name="Audit")).to_contain_text("nb.data.harm_audit")
    if os.environ.get("NBLLM_PICTURES"):
        notebook.menu("Settings", "Theme", "JupyterLab Dark")
        page.wait_for_timeout(1500)
        for tab in ("Steps", "Documents", "Thresholds", "Duplicates"):
            panel.get_by_role("tab", name=tab).click()
            picture(panel, f"{tab.lower()}-dark")
    assert page.evaluate("window.hacked") is None
