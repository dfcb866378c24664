"""The tour as a person takes it: in JupyterLab, all cells; and what of it is seen where there is no kernel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from nbllm.notebook import TOUR, notebooks_folder
from tests.browser.lab import Lab, Notebook

WIDGET = "application/vnd.jupyter.widget-view+json"
# Where README's pictures go: NBLLM_PICTURES=notebooks/images pytest -m notebook tests/browser/test_tour_lab.py
PICTURES = os.environ.get("NBLLM_PICTURES")
# tests/notebooks runs the tour whole; in JupyterLab its cells run with a small model, in a tenth of the steps.
SHORT = {
    "num_layers=4, hidden_size=256": "num_layers=1, hidden_size=32",
    "steps=700": "steps=70, num_threads=1",
    "checkpoint_interval=100": "checkpoint_interval=10",
    "validation_interval=50": "validation_interval=5",
    "run.wait(step=60)": "run.wait(step=6)",
    "run.wait(step=110)": "run.wait(step=11)",
    "run.wait(step=125)": "run.wait(step=12)",
    "run.rewind(100)": "run.rewind(10)",
    'fork("gentle", step=500': 'fork("gentle", step=50',
    "assert ours < 2.10 < xz": "assert ours < 8",
}


@pytest.fixture(scope="module")
def short(lab: Lab, browser: Browser):
    """Run all cells of the shortened tour; the page stays open."""
    book = nbformat.read(notebooks_folder() / TOUR, as_version=4)
    for long, quick in SHORT.items():
        (cell,) = [cell for cell in book.cells if cell.cell_type == "code" and long in cell.source]
        cell.source = cell.source.replace(long, quick)
    nbformat.write(book, lab.root / TOUR)
    context = browser.new_context(viewport={"width": 1180, "height": 1150}, color_scheme="light")
    page = context.new_page()
    notebook = Notebook(lab, page, TOUR).open("tour")
    notebook.menu("Run", "Run All Cells")
    last = len(code_cells(lab.root / TOUR)) - 1
    prompt = page.locator(".jp-CodeCell .jp-InputPrompt").nth(last)
    expect(prompt).to_have_text(f"[{last + 1}]:", timeout=400_000)
    notebook.save()
    yield notebook
    notebook.shut_down()
    context.close()


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    book = nbformat.read(path, as_version=4)
    return [cell for cell in book.cells if cell.cell_type == "code"]


def panel_of(page: Page) -> Locator:
    return page.locator(".nbllm-training").first


@pytest.mark.slow
def test_every_cell_runs_in_jupyterlab_and_the_panel_shows_the_end(lab, short):
    for cell in code_cells(lab.root / TOUR):
        assert [output for output in cell.outputs if output.output_type == "error"] == []
    panel = panel_of(short.page)
    panel.scroll_into_view_if_needed()
    expect(panel.locator(".run-state")).to_have_text("finished")
    expect(panel.get_by_text("step 70 of 70")).to_be_visible()


@pytest.mark.slow
def test_the_notebook_that_jupyterlab_saved_has_a_picture_of_every_panel(lab, short, browser, tmp_path):
    expect_pictures(lab.root / TOUR, browser, tmp_path)


@pytest.mark.notebook
@pytest.mark.timeout(1200)
def test_the_notebook_that_the_tour_left_has_a_picture_of_every_panel(executed, browser, tmp_path):
    expect_pictures(executed("00-tour").path, browser, tmp_path)


def expect_pictures(path: Path, browser: Browser, tmp_path: Path) -> None:
    """Expect that a saved notebook shows its panels without kernel and network, and the run as it ended."""
    book = nbformat.read(path, as_version=4)
    panels = [
        data
        for cell in book.cells
        for data in (output.get("data", {}) for output in cell.get("outputs", []))
        # A report's examples stand in the report above them, too.
        if WIDGET in data and data["text/plain"] != "The examples of the report."
    ]
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


@pytest.mark.notebook
@pytest.mark.timeout(1200)
def test_the_run_that_the_tour_left_is_attached_with_its_whole_history(
    lab: Lab, executed: Callable, opened: Callable[..., Notebook]
):
    shutil.copytree(executed("00-tour").path.parent / "runs", lab.root / "toured")
    notebook = opened('import nbllm as nb\nnb.attach("toured/tour")')
    notebook.run(0)
    panel = panel_of(notebook.page)
    expect(panel.locator(".run-state")).to_have_text("finished")
    expect(panel.get_by_text("step 700 of 700")).to_be_visible()
    expect(panel.get_by_text("gentle").first).to_be_visible()
    if PICTURES:
        picture(notebook, "light")
        notebook.menu("Settings", "Theme", "JupyterLab Dark")
        notebook.page.wait_for_timeout(1500)
        picture(notebook, "dark")


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
    top = whole.crop((0, 0, whole.width, min(whole.height, 985)))  # down to the small curves
    top.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
