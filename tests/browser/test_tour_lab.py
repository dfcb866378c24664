"""The tour as a person takes it: in JupyterLab, all cells; and what of it is seen where there is no kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from nbllm.notebook import notebooks_folder
from tests.browser.lab import Lab, Notebook

TOUR = "00-tour.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"
# Where README's pictures go: NBLLM_PICTURES=notebooks/images pytest tests/browser/test_tour_lab.py
PICTURES = os.environ.get("NBLLM_PICTURES")


@pytest.fixture(scope="module")
def toured(lab: Lab, browser: Browser):
    """Run all cells of the tour; the page stays open."""
    shutil.copy(notebooks_folder() / TOUR, lab.root / TOUR)
    context = browser.new_context(
        viewport={"width": 1180, "height": 1150}, color_scheme="light", device_scale_factor=1
    )
    page = context.new_page()
    notebook = Notebook(lab, page, TOUR).open("tour")
    notebook.menu("Run", "Run All Cells")
    last = len(code_cells(lab)) - 1
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").nth(last)
    expect(prompt).to_have_text(f"[{last + 1}]:", timeout=800_000)
    notebook.save()
    yield notebook
    notebook.shut_down()
    context.close()


def code_cells(lab: Lab) -> list[nbformat.NotebookNode]:
    book = nbformat.read(lab.root / TOUR, as_version=4)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def panel_of(page: Page) -> Locator:
    return page.locator(".nbllm-training").first


@pytest.mark.notebook
@pytest.mark.timeout(1200)
def test_every_cell_runs_and_the_panel_shows_the_end(lab, toured):
    for cell in code_cells(lab):
        assert [output for output in cell.outputs if output.output_type == "error"] == []
    panel = panel_of(toured.page)
    panel.scroll_into_view_if_needed()
    expect(panel.locator(".run-state")).to_have_text("finished")
    expect(panel.get_by_text("step 700 of 700")).to_be_visible()
    if PICTURES:
        picture(toured, "light")
        toured.menu("Settings", "Theme", "JupyterLab Dark")
        toured.page.wait_for_timeout(1500)
        picture(toured, "dark")


def picture(notebook: Notebook, theme: str) -> None:
    from PIL import Image

    notebook.page.set_viewport_size({"width": 1180, "height": 2000})  # the whole panel at once
    panel = panel_of(notebook.page)
    panel.scroll_into_view_if_needed()
    notebook.page.wait_for_timeout(1500)
    path = Path(PICTURES or ".") / f"panel-{theme}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    panel.screenshot(path=path)
    whole = Image.open(path)
    top = whole.crop((0, 0, whole.width, min(whole.height, 1010)))  # down to the small curves
    top.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)


@pytest.mark.notebook
@pytest.mark.timeout(1200)
def test_without_kernel_and_network_every_panel_has_a_picture(lab, toured, browser, tmp_path):
    book = nbformat.read(lab.root / TOUR, as_version=4)
    panels = [o for cell in book.cells for o in cell.get("outputs", []) if WIDGET in o.get("data", {})]
    assert panels
    html, _ = HTMLExporter().from_notebook_node(book)
    (tmp_path / "tour.html").write_text(html)
    context: BrowserContext = browser.new_context(offline=True, viewport={"width": 1100, "height": 1000})
    try:
        page = context.new_page()
        page.goto((tmp_path / "tour.html").as_uri())
        snapshots = page.locator(".nbllm-snapshot")
        assert snapshots.count() == len(panels)
        for number in range(snapshots.count()):
            expect(snapshots.nth(number).locator("svg, table").first).to_be_visible()
        expect(snapshots.first.get_by_text("finished").first).to_be_visible()
    finally:
        context.close()
