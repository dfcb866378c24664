"""The runs panel in a real JupyterLab: messages over a real kernel, the notebook's own styles and keys."""

import re

import pytest

from nbllm.runs.events import EventWriter
from tests.browser.lab import Notebook
from tests.widgets.test_runs import grown, write_steps


@pytest.mark.slow
def test_runs_in_a_notebook(lab, page):
    runs = lab.root / "two"  # other tests have runs in the usual folder
    path = grown(runs, "base", end="")
    grown(runs, "warmer", steps=60, config={"lr": 0.2, "steps": 100}, parent={"name": "base", "step": 40})
    lab.write("runs.ipynb", "import nbllm as nb\nnb.runs('two')")
    notebook = Notebook(lab, page, "runs.ipynb").open()
    notebook.run(0)
    page.locator(".runs-spark").nth(1).wait_for()
    assert page.locator(".runs-name").all_inner_texts() == ["base", "warmer"]
    with EventWriter(path) as writer:
        write_steps(writer, 41, 77)
    page.get_by_role("row").filter(has_text="77 / 100").wait_for()
    for name in ("base", "warmer"):
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    page.get_by_role("heading", name="2 runs compared").wait_for()
    page.get_by_role("application", name=re.compile("Training loss.*warmer .* at step 60")).wait_for()
    page.get_by_role("button", name="Open base").click()
    assert page.locator(".runs-command code").inner_text() == f"nb.attach({str(path.resolve())!r})"
    # The keys that delete a cell in command mode do nothing while a box of ours has the focus.
    page.get_by_role("checkbox", name="Compare base").focus()
    page.keyboard.press("d")
    page.keyboard.press("d")
    page.wait_for_timeout(300)
    assert page.locator(".runs-table").is_visible()
    page.get_by_role("button", name="Open warmer").click()
    page.get_by_role("button", name="Rename warmer", exact=True).click()
    page.get_by_label("New name of warmer").fill("best")
    page.keyboard.press("Enter")
    page.get_by_text("warmer is now called best.").wait_for()
    page.get_by_role("checkbox", name="Compare best").wait_for()
    assert (runs / "best").is_dir() and not (runs / "warmer").exists()
    notebook.restart()
    page.locator(".nbllm-loss").wait_for()
