"""Training code that is not ours, seen and steered in the panel while its cell keeps the kernel busy."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from nbllm.runs.run import Run
from tests.browser.test_panel_lab import applied, button, expect_state, run_of

LOOP = """
import time
import torch
import nbllm as nb
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loop = nb.follow("plain", steps=100_000, settings={"lr": 0.01}, modules={"model": model, "optimizer": optimizer},
                 checkpoint_interval=20)
loop
"""
TURNS = """
with loop:
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = loop.settings["lr"]
        x = torch.randn(16, 8)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.01)
        loop.log(loss=loss, tokens=16)
"""
TRAINER = """
import torch
import transformers
import nbllm as nb
torch.manual_seed(0)
config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
model = transformers.GPT2LMHeadModel(config)
rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 64, (64, 16))]
options = transformers.TrainingArguments("out", max_steps=100_000, per_device_train_batch_size=2, logging_steps=1,
    save_steps=25, save_total_limit=2, report_to="none", disable_tqdm=True, use_cpu=True)
recorder = nb.RunCallback("trainer")
trainer = transformers.Trainer(model, options, train_dataset=rows, callbacks=[recorder])
trainer.remove_callback(transformers.PrinterCallback)
"""


def steer(panel: Locator, run: Run, lr: float) -> int:
    """Pause, set the learning rate, resume; return the step of the pause."""
    button(panel, "Pause").click()
    pause = applied(run, "pause")
    expect_state(panel, "paused")
    field = panel.get_by_label("Learning rate to set")
    field.fill(str(lr))
    field.press("Enter")
    assert applied(run, "set")["args"] == {"lr": lr}
    button(panel, "Resume").click()
    applied(run, "resume")
    return int(pause["step"])


def rewind(panel: Locator, run: Run) -> dict:
    """Go back to the first checkpoint, and return the event."""
    slider = panel.get_by_label("Checkpoint", exact=True)
    slider.focus()
    slider.press("Home")
    panel.get_by_role("button", name=re.compile(r"^Rewind to")).click()
    return applied(run, "rewind")


def stop(panel: Locator, run: Run) -> None:
    button(panel, "Stop").click()
    button(panel, "Stop now").click()
    applied(run, "stop")
    expect_state(panel, "stopped")


def test_a_plain_loop_is_steered_while_its_cell_runs(lab, opened):
    notebook = opened(LOOP, TURNS, "step")
    notebook.run(0)
    panel, run = notebook.panel(0), run_of(lab, "plain")
    expect_state(panel, "starting")
    notebook.run(1, wait=False)
    expect_state(panel, "running")
    expect(panel.get_by_text("learning rate", exact=False).first).to_be_visible()
    paused = steer(panel, run, 0.005)
    expect_state(panel, "running")
    for name, reason in (("Sample", "sample="), ("Evaluate", "evaluate=")):
        control = button(panel, name)
        expect(control).to_be_disabled()
        assert reason in (control.get_attribute("title") or ""), control.get_attribute("title")
    event = rewind(panel, run)
    assert event["args"]["to"] < paused <= event["step"]
    expect_state(panel, "running")
    panel.screenshot(path=lab.root.parent / "follow.png")
    stop(panel, run)
    notebook.run(2)
    assert not notebook.is_running(1)
    assert "Error" not in notebook.output(1).inner_text()


def test_transformers_trainer_is_steered_in_the_cell_that_trains(lab, opened):
    notebook = opened(TRAINER, "trainer.train()")
    notebook.run(0)
    notebook.run(1, wait=False)
    panel = notebook.panel(1)
    expect_state(panel, "running", timeout=60_000)
    run = run_of(lab, "trainer")
    assert steer(panel, run, 0.0001) > 0
    assert "fork" in run.cannot
    expect(button(panel, "Fork")).to_be_disabled()
    event = rewind(panel, run)
    assert event["args"]["to"] < event["step"]
    expect_state(panel, "running", timeout=30_000)
    panel.screenshot(path=lab.root.parent / "trainer.png")
    stop(panel, run)
