"""What a kernel publishes when a run is shown, heard as nbclient, nbconvert and JupyterLab hear it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.widgets.show import panel, run_panels

WIDGET = "application/vnd.jupyter.widget-view+json"
ROOT = Path(__file__).parents[2]
BEGIN = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import nbllm as nb
from tests.runs.conftest import Loop, SETTINGS
from nbllm.runs.store import create
path = create("runs", "tour", {{"steps": 40, "config": {{"steps": 40}}, "settings": [s.to_dict() for s in SETTINGS]}})
loop = Loop(path, steps=40, period=0.02)
loop.start()
run = nb.Run(path)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Show a run while it goes on, show it again, let it end, look at something else, list the runs."""
    cells = [
        BEGIN,
        "run",
        "nb.Run(path)",
        "loop.join(); run.wait(progress=False); None",
        "1 + 1",
        "nb.runs()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    folder = tmp_path_factory.mktemp("book")
    client = NotebookClient(
        book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return book


def outputs(book, index):
    return [output for output in book.cells[index].outputs if output.output_type != "stream"]


def test_a_run_is_shown_as_a_panel_and_beneath_it_as_a_picture(executed):
    panel, snapshot = outputs(executed, 1)
    assert panel.data[WIDGET]["model_id"]
    assert panel.data["text/plain"].startswith("Run 'tour'")
    assert "nbllm-snapshot" in snapshot.data["text/html"]
    assert "<script" not in snapshot.data["text/html"]


def test_the_same_run_shown_twice_is_one_panel(executed):
    first, second = outputs(executed, 1)[0], outputs(executed, 2)[0]
    assert first.data[WIDGET] == second.data[WIDGET]


def test_the_picture_is_of_the_end_though_it_was_shown_while_the_run_went_on(executed):
    for index in (1, 2):
        snapshot = outputs(executed, index)[1]
        assert "finished" in snapshot.data["text/plain"]
        assert "<svg" in snapshot.data["text/html"]
        assert "step 40 of 40" in snapshot.data["text/html"]


def test_a_list_of_runs_has_a_panel_and_a_picture(executed):
    panel, snapshot = outputs(executed, 5)
    assert WIDGET in panel.data
    assert "tour" in snapshot.data["text/plain"]


def test_nbconvert_shows_a_picture_of_each_panel(executed):
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter().from_notebook_node(executed)
    assert html.count('class="nbllm-snapshot"') == 3


def test_a_run_that_has_replaced_another_has_a_panel_of_its_own(tmp_path):
    """The first panel's handle would give the weights of a resumed run to the model of the run that was replaced."""
    path = create(tmp_path, "demo", {"created": 1.0})
    first = panel(path)
    assert panel(Run(path)) is first
    Run(path).delete()
    create(tmp_path, "demo", {"created": 2.0})
    second = panel(path)
    try:
        assert second is not first and panel(path) is second
    finally:
        for each in (first, second):
            each.close()
            run_panels.remove(each)
