"""The training panel as its user has it: real runs, a real JupyterLab, real clicks."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import nbformat
import pytest
from playwright.sync_api import BrowserContext, Locator, expect

from nbllm.runs.run import Run
from tests.browser.lab import Lab, Notebook

BEGIN = """
import time
import nbllm as nb
text = nb.data.load("pydocs").select(range(12))
tokenizer = nb.data.train_tokenizer(text, vocab_size=320)
def begin(name, **options):
    lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64)
    settings = dict(steps=100_000, batch_size=2, sequence_length=32, lr=3e-3, schedule="constant", warmup_steps=0,
                    validation_interval=0, sample_interval=0, checkpoint_interval=0, num_threads=1)
    training, held_out = text.select(range(8)), text.select(range(8, 12))
    return nb.train(lm, training, validation=held_out, name=name, **{**settings, **options})
"""
BUSY = "deadline = time.monotonic() + 20\nwhile time.monotonic() < deadline:\n    sum(range(1000))"


@pytest.fixture
def book(opened: Callable[..., Notebook]) -> Callable[..., Notebook]:
    """Open a notebook whose first cell has run."""

    def book(*cells: str) -> Notebook:
        notebook = opened(BEGIN, *cells)
        notebook.run(0)
        return notebook

    return book


def run_of(lab: Lab, name: str) -> Run:
    return Run(lab.root / "runs" / name)


def applied(run: Run, action: str, seconds: float = 20.0) -> dict:
    """Return the newest event of an action of a person, once it is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = [e for e in run.events("action") if e["action"] == action and e["actor"] == "person"]
        if found:
            assert found[-1]["outcome"] == "applied", found[-1]
            return found[-1]
        time.sleep(0.02)
    raise AssertionError(f"no {action} came")


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=name, exact=True)


def expect_state(panel: Locator, state: str, timeout: float = 20_000) -> None:
    expect(panel.locator(".run-state")).to_have_text(state, timeout=timeout)


def picture(panel: Locator, name: str) -> None:
    """Keep a picture where NBLLM_PICTURES says."""
    if folder := os.environ.get("NBLLM_PICTURES"):
        panel.screenshot(path=f"{folder}/{name}.png")


def step_shown(panel: Locator) -> int:
    found = re.search(r"step ([\d,]+)", panel.inner_text())
    assert found
    return int(found[1].replace(",", ""))


WHERE = {"thread": '"thread"', "process": '"process"', "two-processes": "nb.Launch(processes=2)"}


@pytest.mark.parametrize("where", WHERE)
def test_every_control_acts_at_the_step_that_it_says(lab, book, where):
    name = f"steered-{where}"
    notebook = book(f"run = begin({name!r}, where={WHERE[where]})\nrun")
    notebook.run(1)
    panel, run = notebook.panel(1), run_of(lab, name)
    expect_state(panel, "running", timeout=30_000)

    if where == "two-processes":
        panel.get_by_text(re.compile(r"^2 ranks, step")).click()
        expect(panel.locator(".panel-ranks tbody tr")).to_have_count(2)
        picture(panel, "two-processes")
        panel.get_by_text("Profile", exact=True).click()
        button(panel, "Profile 3 steps").click()
        profiled = applied(run, "profile")
        title = f"Profile: 3 steps from step {profiled['step']:,} on, 2 ranks"
        expect(panel.locator(".panel-profile summary")).to_have_text(title, timeout=30_000)
        expect(panel.locator(".panel-profile svg")).to_have_count(2)
        picture(panel, "two-processes-profile")
    button(panel, "Pause").click()
    pause = applied(run, "pause")
    expect(panel.get_by_text(re.compile(rf"paused at step {pause['step']:,}\b", re.I)).first).to_be_visible()
    assert run.state == "paused"
    # What is spoken comes at once, what is drawn within a tenth of a second.
    expect(panel.locator(".run-step")).to_have_text(re.compile(rf"step {pause['step']:,}\b"))

    field = panel.get_by_label("Learning rate to set")
    field.fill("0.001")
    field.press("Enter")
    change = applied(run, "set")
    assert (change["args"], change["step"]) == ({"lr": 0.001}, pause["step"])

    panel.get_by_label("Prompt").fill("The for statement")
    panel.get_by_label("Prompt").press("Enter")
    sample = applied(run, "sample")
    assert sample["args"]["prompt"] == "The for statement"
    written = run.events("sample")[-1]["text"]
    expect(panel.locator(".panel-sample pre").first).to_contain_text("The for statement")
    assert panel.locator(".panel-sample pre").first.inner_text().startswith("The for statement" + written[:1])
    # JupyterLab breaks the lines of an output's text within words.
    expect(panel.locator(".panel-sample pre").first).to_have_css("word-break", "normal")

    button(panel, "Resume").click()
    applied(run, "resume")
    saved = pause["step"]  # a pause saves
    deadline = time.monotonic() + 20
    while run.step < saved + 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    button(panel, "Save").click()
    second = applied(run, "save")["step"]

    slider = panel.get_by_label("Checkpoint", exact=True)
    slider.focus()
    slider.press("Home")
    slider.press("ArrowRight")
    panel.get_by_role("button", name=re.compile(rf"Rewind to (step )?{saved:,}$")).click()
    rewind = applied(run, "rewind")
    assert rewind["args"]["to"] == saved < second <= rewind["step"]
    expect(panel.get_by_text(re.compile(rf"{rewind['step']:,}")).first).to_be_visible()

    panel.get_by_label("Name of the fork").fill(f"other-{where}")
    panel.get_by_label("lr of the fork").fill("0.0005")
    button(panel, "Fork").click()
    expect(panel.get_by_role("button", name=re.compile(f"other-{where}")).first).to_be_visible(timeout=40_000)
    fork = run_of(lab, f"other-{where}")
    assert fork.config["lr"] == 0.0005
    assert fork.parent["step"] == saved
    for ended in (run, fork):
        ended.stop()


def test_a_reload_brings_the_panel_back_and_it_steers(lab, book):
    notebook = book("run = begin('reloaded')\nrun")
    notebook.run(1)
    panel, run = notebook.panel(1), run_of(lab, "reloaded")
    expect_state(panel, "running", timeout=30_000)
    notebook.save()
    before = step_shown(panel)
    notebook.reload()
    panel = notebook.panel(1)
    expect_state(panel, "running", timeout=30_000)
    assert step_shown(panel) > before
    button(panel, "Pause").click()
    pause = applied(run, "pause")
    expect(panel.get_by_text(re.compile(rf"paused at step {pause['step']:,}\b", re.I)).first).to_be_visible()
    run.stop()


def test_after_a_restart_of_the_kernel_the_directory_brings_all_back(lab, book):
    notebook = book(
        "run = begin('survivor', checkpoint_interval=50)\nrun", "import nbllm as nb\nnb.attach('survivor')"
    )
    notebook.run(1)
    expect_state(notebook.panel(1), "running", timeout=30_000)
    run = run_of(lab, "survivor")
    run.wait(step=120, progress=False)
    notebook.restart()
    assert run.state in ("lost", "stopped")  # the kernel took its thread with it
    notebook.run(2)
    panel = notebook.panel(2)
    expect(panel.locator(".run-state")).to_have_text(re.compile("lost|stopped"), timeout=30_000)
    button(panel, "Resume").first.click()
    expect_state(panel, "running", timeout=60_000)
    starts = run.events("start")
    assert len(starts) == 2
    assert starts[1]["from_step"] >= 100
    run.stop()


def test_a_cell_that_is_run_again_keeps_what_a_person_has_made_of_the_panel(lab, book):
    notebook = book("run = begin('again')\nrun", "run")
    notebook.run(1)
    notebook.run(2)
    panel = notebook.panel(2)
    expect_state(panel, "running", timeout=30_000)
    panel.get_by_label("Prompt").fill("half a sent")
    button(panel, "tokens").click()
    panel.evaluate("(node) => { node.dataset.seen = 'before'; }")
    notebook.run(2)
    expect(panel).not_to_have_attribute("data-seen", "before")  # another view, of the same model
    expect_state(panel, "running")
    expect(panel.get_by_label("Prompt")).to_have_value("half a sent")
    expect(button(panel, "tokens")).to_have_attribute("aria-pressed", "true")
    button(panel, "Pause").click()
    pause = applied(run_of(lab, "again"), "pause")
    for cell in (1, 2):
        expect(notebook.panel(cell).get_by_text(f"paused at step {pause['step']:,}").first).to_be_visible()
    run_of(lab, "again").stop()


def test_two_tabs_agree(lab, book, context: BrowserContext):
    notebook = book("run = begin('shared')\nrun")
    notebook.run(1)
    expect_state(notebook.panel(1), "running", timeout=30_000)
    notebook.save()
    other = Notebook(lab, context.new_page(), notebook.name).open("another")
    panel = other.panel(1)
    expect_state(panel, "running", timeout=30_000)
    button(panel, "Pause").click()
    pause = applied(run_of(lab, "shared"), "pause")
    for tab in (notebook, other):
        expect_state(tab.panel(1), "paused")
        assert step_shown(tab.panel(1)) == pause["step"]
    run_of(lab, "shared").stop()


@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_cell_that_computes_stops_neither_curve_nor_controls(lab, book, where):
    name = f"busy-{where}"
    notebook = book(f"run = begin({name!r}, where={where!r})\nrun", BUSY)
    notebook.run(1)
    panel, run = notebook.panel(1), run_of(lab, name)
    expect_state(panel, "running", timeout=30_000)
    notebook.run(2, wait=False)
    time.sleep(1.0)
    before = step_shown(panel)
    time.sleep(2.0)
    assert step_shown(panel) > before
    button(panel, "Pause").click()
    pause = applied(run, "pause", seconds=8)
    expect(panel.get_by_text(re.compile(rf"paused at step {pause['step']:,}\b", re.I)).first).to_be_visible()
    field = panel.get_by_label("Learning rate to set")
    field.fill("0.002")
    field.press("Enter")
    assert applied(run, "set", seconds=8)["args"] == {"lr": 0.002}
    assert notebook.is_running(2)  # all that happened while the cell was computing
    run.stop()


def test_without_subshells_the_panel_says_that_it_waits(lab, book):
    with lab.setting("@jupyterlab/apputils-extension/kernels-settings", commsOverSubshells="disabled"):
        notebook = book("run = begin('waiting')\nrun", BUSY)
        notebook.run(1)
        panel, run = notebook.panel(1), run_of(lab, "waiting")
        expect_state(panel, "running", timeout=30_000)
        notebook.run(2, wait=False)
        time.sleep(1.0)
        before = step_shown(panel)
        button(panel, "Pause").click()
        expect(panel.get_by_text("nbllm runs steer waiting pause").first).to_be_visible(timeout=5000)
        time.sleep(1.0)
        assert step_shown(panel) > before  # what comes from the kernel does not wait
        pause = applied(run, "pause", seconds=40)  # taken when the cell is done
        expect(
            panel.get_by_text(re.compile(rf"paused at step {pause['step']:,}\b", re.I)).first
        ).to_be_visible()
        run.stop()


HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>\u202egnp.exe"


def test_hostile_text_in_name_sample_and_training_text_is_shown_and_does_nothing(lab, book, page):
    name = HOSTILE.replace("/", "\\")
    cell = f"""
from nbllm.runs.events import EventWriter
from nbllm.runs.process import this_process
import json, pathlib
hostile = {HOSTILE!r}
folder = pathlib.Path("runs") / {name!r}
folder.mkdir(parents=True)
(folder / "run.json").write_text(json.dumps({{"schema": "nbllm-run/1", "name": hostile, "config": {{}}, "settings": [
    {{"name": hostile, "help": hostile, "unit": hostile}}], "where": hostile, "host": hostile}}))
with EventWriter(folder) as writer:
    writer.write("start", 0, where="thread", from_step=0, **this_process())
    for step in range(1, 40):
        writer.write("step", step, loss=5 / step, lr=0.1, **{{hostile: 1.0}})
    writer.write("sample", 39, prompt=hostile, text=hostile, actor=hostile)
    writer.write("warning", 39, text=hostile)
    what = dict(action="set", args={{hostile: 1}}, actor=hostile, outcome="refused", reason=hostile)
    writer.write("action", 39, id="1", **what)
    writer.write("end", 39, state="failed", reason=hostile)
nb.Run(folder)
"""
    notebook = book(cell, "text.from_list([{'text': hostile}])\nnb.runs()", "nb.attention")
    notebook.run(1)
    panel = notebook.panel(1)
    expect_state(panel, "failed", timeout=30_000)
    expect(panel.locator(".panel-sample pre").first).to_contain_text("<script>")
    notebook.run(2)
    expect(notebook.panel(2).get_by_text("<script>").first).to_be_visible(timeout=20_000)
    shown = panel.inner_text() + notebook.panel(2).inner_text()
    assert "\u202e" not in shown
    assert page.evaluate("window.hacked") is None
    assert panel.locator("script, img").count() == 0


def test_a_killed_kernel_leaves_a_grey_panel_and_a_notebook_that_was_saved_before_has_its_picture(lab, book):
    cell = "import os, nbllm.widgets.training as t\nt.PICTURE_PERIOD = 0.5\nrun = begin('killed')\nrun"
    notebook = book(cell, "print(os.getpid())")
    notebook.run(1)
    panel, run = notebook.panel(1), run_of(lab, "killed")
    expect_state(panel, "running", timeout=30_000)
    notebook.run(2)
    run.wait(step=20, timeout=60, progress=False)

    snapshot = notebook.output(1).locator(".nbllm-snapshot")  # beneath the live panel, and hidden
    expect(snapshot).to_contain_text(re.compile(r"step [\d,]{2,} of"), timeout=60_000)
    notebook.save()
    outputs = nbformat.read(lab.root / notebook.name, as_version=4).cells[1].outputs
    (html,) = [o.data["text/html"] for o in outputs if "nbllm-snapshot" in o.data.get("text/html", "")]
    assert re.search(r"step [\d,]{2,} of", html)
    assert run.state == "running"
    os.kill(int(notebook.output(2).inner_text()), signal.SIGKILL)
    expect(panel.locator(".nbllm-loss")).to_contain_text(
        'nb.attach("killed").resume() continues it', timeout=60_000
    )
    assert panel.locator(".panel-body").evaluate("(body) => body.inert")

    notebook.reload()  # with the kernel's successor, which knows nothing of the run
    expect(notebook.output(1).locator(".nbllm-snapshot")).to_be_visible()
    notebook.save()
    saved = nbformat.read(lab.root / notebook.name, as_version=4).cells[1].outputs
    assert [o.data["text/html"] for o in saved if "nbllm-snapshot" in o.data.get("text/html", "")] == [html]
