# ruff: noqa: E501
"""The training panel's front end, on a model that only pretends; in a real browser."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from nbllm.runs.step_profile import StepProfile
from nbllm.widgets.profile_card import profile_card
from tests.browser.panel_page import PanelPage, action, checkpoint, make_card, sample, setting, steps_table
from tests.runs.profile_files import summary, write_profile

HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=1">\u202egnp.exe'
EVALUATIONS = {"step": [40.0, 80.0, 120.0], "loss": [5.1, 3.9, 3.3], "bits_per_byte": [2.4, 1.9, 1.6]}


@pytest.fixture
def fresh(page: Page, static_url: str) -> Callable[..., PanelPage]:
    """Open a panel to which the kernel has said nothing yet."""
    return lambda **options: PanelPage(page, static_url, **options)


@pytest.fixture
def panel(fresh: Callable[..., PanelPage]) -> PanelPage:
    """A panel on a run that goes on, at step 120 of 600, with its points."""
    panel = fresh()
    panel.snapshot()
    panel.points(steps_table(1, 120))
    panel.points(EVALUATIONS, series="evaluations")
    return panel


def button(panel: PanelPage, name: str) -> Locator:
    return panel.panel.get_by_role("button", name=name, exact=True)


def texts(rows: Locator) -> list[str]:
    return [" ".join(text.split()) for text in rows.all_inner_texts()]


# Opening, and keeping up


def test_it_says_hello_and_waits_for_an_answer_of_its_own(fresh):
    panel = fresh()
    assert [message["type"] for message in panel.page.evaluate("sent")] == ["hello"]
    expect(panel.panel).to_contain_text("Opening the run")
    panel.say("snapshot", to="somebody else", seq=0, focus="tour", runs=[make_card()])
    expect(panel.panel).to_contain_text("Opening the run")
    panel.snapshot()
    expect(panel.panel.locator(".run-name")).to_have_text("tour")
    expect(panel.panel.locator(".panel-loading")).to_be_hidden()


def test_a_kernel_that_does_not_answer_is_spoken_of(fresh):
    panel = fresh()
    expect(panel.panel).to_contain_text("The kernel has not answered yet", timeout=5000)
    assert len(panel.sent("hello")) == 1  # what is sent to a busy kernel is not lost: no need to repeat it


def test_a_kernel_that_falls_silent_greys_the_panel_and_says_what_to_do(panel):
    root = panel.panel
    expect(root.locator(".nbllm-loss")).to_be_hidden()
    panel.page.evaluate("() => { silent = true; const now = Date.now; Date.now = () => now() + 20_000; }")
    expect(root.locator(".nbllm-loss")).to_contain_text("The kernel has not been heard since")
    expect(root.locator(".nbllm-loss")).to_contain_text('nb.attach("tour").resume() continues it')
    expect(root.locator(".run-left")).to_be_hidden()
    assert root.locator(".panel-body").evaluate("(body) => body.inert")
    panel.page.evaluate("() => { silent = false; }")  # it was only held up
    expect(root.locator(".nbllm-loss")).to_be_hidden()
    assert not root.locator(".panel-body").evaluate("(body) => body.inert")


@pytest.mark.parametrize("width", [700, 900])
def test_two_runs_are_told_apart_in_the_legend_by_dash_and_name(fresh, width):
    panel = fresh(width=width)
    names = ["warmup-long-lr-0.003", "warmup-long-lr-0.001"]
    panel.snapshot(*(make_card(name, color=number) for number, name in enumerate(names, start=1)))
    for name in names:
        panel.points(steps_table(1, 120), run=name)
        panel.points(EVALUATIONS, run=name, series="evaluations")
    entries = panel.panel.locator(".panel-loss .nbllm-chart > div > div > span")
    assert entries.all_inner_texts() == [names[1], names[0], "held-out"]
    dashes = entries.locator("svg path").evaluate_all(
        "(paths) => paths.map((p) => p.getAttribute('stroke-dasharray'))"
    )
    assert len(set(dashes)) == 3
    assert entries.locator("bdi").evaluate_all(
        "(all) => all.every((one) => one.scrollWidth <= one.clientWidth)"
    )
    if os.environ.get("NBLLM_PICTURES"):
        panel.panel.screenshot(path=f"{os.environ['NBLLM_PICTURES']}/legend-{width}.png")


def test_the_head_says_where_the_run_stands(panel):
    root = panel.panel
    expect(root.locator(".run-state")).to_have_text("running")
    expect(root.locator(".run-head")).to_contain_text("step 120 of 600")
    expect(root.locator(".run-head")).to_contain_text("about 5 min 24 s left")
    facts = texts(root.locator(".run-facts div"))
    assert facts[:4] == ["training loss 3.214 nats/token", "held-out loss 3.301 nats/token", "held-out 1.612 bits/byte",
                         "learning rate 0.00091"]  # fmt: skip
    assert "speed 12,346 tokens/s" in facts
    bar = root.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuetext", "step 120 of 600")
    assert [bar.get_attribute(f"aria-value{name}") for name in ("min", "now", "max")] == ["0", "120", "600"]


def test_an_update_changes_what_it_names_and_nothing_else(panel):
    panel.update(step=130, facts={"loss": 3.0, "lr": 9e-4})
    expect(panel.panel.locator(".run-head")).to_contain_text("step 130 of 600")
    assert texts(panel.panel.locator(".run-facts div")) == [
        "training loss 3.000 nats/token",
        "learning rate 0.0009",
    ]
    expect(panel.panel.locator(".run-name")).to_have_text("tour")
    panel.update(state="finished", step=600)
    expect(panel.panel.locator(".run-state")).to_have_text("finished")
    expect(panel.panel.locator(".run-left")).to_have_text("")


def test_a_run_without_end_shows_no_bar(fresh):
    panel = fresh()
    panel.snapshot(make_card(steps=None))
    expect(panel.panel.locator(".run-step")).to_have_text("step 120")
    expect(panel.panel.get_by_role("progressbar")).to_be_hidden()


def test_a_missed_update_is_noticed_and_everything_asked_for_once_more(panel):
    panel.update(step=121)
    assert len(panel.sent("hello")) == 1
    panel.seq += 1  # lost on the way
    panel.update(step=123)
    panel.update(step=124)
    assert len(panel.sent("hello")) == 2
    panel.snapshot(make_card(step=124, name="tour anew"))
    panel.update(step=125)
    assert len(panel.sent("hello")) == 2
    expect(panel.panel.locator(".run-name")).to_have_text("tour anew")
    expect(panel.panel.locator(".run-step")).to_have_text("step 125 of 600")


def test_messages_of_a_newer_kernel_are_let_be(panel):
    panel.say("confetti", color="red")
    expect(panel.panel.locator(".nbllm-error")).to_be_hidden()


# Points


def test_points_are_appended_cut_and_replaced(panel):
    raw = panel.drawn()["tour raw"]
    assert (raw["x"][0], raw["x"][-1], len(raw["x"])) == (1, 120, 120)
    panel.points(steps_table(121, 130), mode="append", cut=None, total=130)
    assert panel.drawn()["tour raw"]["x"][-3:] == [128, 129, 130]
    cut = steps_table(101, 104, seed=9)
    panel.points(cut, mode="append", cut=100, total=104)  # the steps after 100 were undone
    raw = panel.drawn()["tour raw"]
    assert raw["x"] == list(range(1, 105))
    assert raw["y"][100:] == pytest.approx(cut["loss"], rel=1e-6)
    panel.points(steps_table(1, 50), mode="replace")
    assert panel.drawn()["tour raw"]["x"] == list(range(1, 51))


def test_held_out_points_stand_at_their_steps_and_are_drawn_as_points(panel):
    held = panel.drawn()["tour held-out"]
    assert (held["x"], held["kind"]) == ([40, 80, 120], "points")
    assert held["y"] == pytest.approx(EVALUATIONS["loss"], rel=1e-6)
    assert held["color"] != panel.drawn()["tour raw"]["color"]
    panel.points({"step": [160.0], "loss": [3.0]}, series="evaluations", mode="append", cut=None, total=4)
    assert panel.drawn()["tour held-out"]["x"] == [40, 80, 120, 160]


def test_a_column_that_comes_later_is_missing_before(panel):
    panel.points({**steps_table(121, 122), "noise": [1.0, 2.0]}, mode="append", cut=None, total=122)
    panel.update(metrics=["noise"])
    noise = panel.drawn("noise")["tour"]
    assert noise["x"] == list(range(1, 123))
    assert all(value != value for value in noise["y"][:120])  # NaN
    assert noise["y"][120:] == [1, 2]
    panel.points(steps_table(123, 123), mode="append", cut=None, total=123)
    panel.page.wait_for_timeout(2200)  # small charts are drawn every two seconds while only points are added
    assert panel.drawn("noise")["tour"]["y"][122] != panel.drawn("noise")["tour"]["y"][122]


def test_more_points_than_can_be_kept_are_thinned_and_stay_the_same_picture(panel):
    steps = [float(step) for step in range(1, 20_001)]
    loss = [5.0 if step != 7777 else 99.0 for step in steps]
    panel.points({"step": steps[:8000], "loss": loss[:8000]}, total=8000)
    for begin in (8000, 12_000, 16_000):
        end = begin + 4000
        panel.points({"step": steps[begin:end], "loss": loss[begin:end]}, mode="append", cut=None, total=end)
    raw = panel.drawn()["tour raw"]
    assert len(raw["x"]) <= 16_384
    assert (raw["x"][0], raw["x"][-1], max(raw["y"])) == (1, 20_000, 99)
    assert raw["x"][raw["y"].index(99)] == 7777


def test_the_charts_run_along_tokens_and_time_too(panel):
    button(panel, "tokens").click()
    panel.settle()
    assert panel.drawn()["tour raw"]["x"][-1] == 120 * 8192
    assert panel.drawn()["tour held-out"]["x"] == [40 * 8192, 80 * 8192, 120 * 8192]
    button(panel, "time").click()
    panel.settle()
    assert panel.drawn()["tour raw"]["x"][-1] == pytest.approx(81.6)
    assert panel.drawn("learning rate")["tour"]["x"][-1] == pytest.approx(81.6)
    expect(button(panel, "time")).to_have_attribute("aria-pressed", "true")


def test_smoothing_shows_the_raw_line_behind(panel):
    assert panel.drawn()["tour raw"]["faint"]
    assert not panel.drawn()["tour smoothed"].get("faint")
    slider = panel.panel.get_by_label("Smoothing")
    slider.fill("10")
    panel.settle()
    smooth, raw = panel.drawn()["tour smoothed"]["y"], panel.drawn()["tour raw"]["y"]
    restless = [sum(abs(a - b) for a, b in itertools.pairwise(y)) for y in (smooth, raw)]
    assert restless[0] < restless[1] / 2
    slider.fill("0")
    panel.settle()
    assert "tour smoothed" not in panel.drawn()
    assert not panel.drawn()["tour raw"]["faint"]


def test_small_charts_show_what_there_is(panel):
    labels = panel.page.evaluate("[...given.keys()]")
    assert labels == ["Loss", "learning rate", "gradient norm", "tokens/s", "memory"]
    expect(panel.panel.locator(".panel-small-chart")).to_have_count(4)
    table = steps_table(1, 50)
    del table["memory"], table["grad_norm"]
    panel.points(table)
    expect(panel.panel.locator(".panel-small-chart")).to_have_count(2)


def test_all_charts_zoom_together_and_finer_points_are_asked_for(panel):
    table = steps_table(1, 8000)
    coarse = {name: values[::40] for name, values in table.items()}
    panel.points(coarse, total=8000)
    chart = panel.panel.locator(".nbllm-chart").first
    chart.focus()
    for _ in range(4):
        chart.press("+")
    panel.settle()
    panel.page.wait_for_timeout(250)
    (asked,) = panel.sent("window")
    assert asked["run"] == "tour"
    assert 0 < asked["first"] < asked["last"] < 8000
    assert 1000 < asked["last"] - asked["first"] < 2000  # 8000 / 1.6 ** 4
    window = {name: values[asked["first"] - 1 : asked["last"]] for name, values in table.items()}
    panel.points(window, mode="window", first=asked["first"], last=asked["last"], total=8000, to=panel.viewer)
    raw = panel.drawn()["tour raw"]
    inside = [x for x in raw["x"] if asked["first"] <= x <= asked["last"]]
    assert inside == list(range(asked["first"], asked["last"] + 1))
    assert raw["x"] == sorted(set(raw["x"]))
    assert len(raw["x"]) < 2200  # as coarse as before elsewhere
    panel.page.wait_for_timeout(250)
    assert len(panel.sent("window")) == 1
    button(panel, "Show all").click()
    panel.settle()
    expect(button(panel, "Show all")).to_be_hidden()
    panel.points(coarse, total=8000)
    assert len(panel.drawn()["tour raw"]["x"]) == 200  # a rewind took the window away


def test_no_finer_points_are_asked_for_where_all_are_here(panel):
    chart = panel.panel.locator(".nbllm-chart").first
    chart.focus()
    chart.press("+")
    panel.page.wait_for_timeout(300)
    assert panel.sent("window") == []


def test_marks_tell_what_was_done_where(panel):
    panel.update(
        checkpoints=[checkpoint(40), checkpoint(80, on_branch=False)],
        actions=[
            action("1", 50, "set", "lr=0.002"),
            action("2", 60, "set", "lr=0.5", outcome="refused"),
            action("3", 70, "set", "lr=0.1", effective=False),
            action("4", 75, "sample"),
            action("5", 80, "set", "lr=0.001", actor="rule:plateau"),
            action("6", 100, "rewind", "rewind to 40", args={"to": 40}),
        ],
    )
    panel.seq += 1
    panel.say(
        "update", seq=panel.seq, runs=[make_card("warmer", color=2, parent={"run": "tour", "step": 40})]
    )
    marks = {(mark["kind"], mark["x"]): mark["label"] for mark in panel.marks()}
    assert marks == {
        ("checkpoint", 40): "checkpoint 40",
        ("action", 50): "lr=0.002, step 50",
        ("rule", 80): "lr=0.001 (rule:plateau), step 80",
        ("action", 40): "rewind to 40, step 100",
        ("fork", 40): "fork warmer",
    }


# Asking, and what becomes of it


@pytest.mark.parametrize("name", ["Pause", "Save", "Evaluate"])
def test_a_button_asks_says_so_and_says_what_became_of_it(panel, name):
    said, past = name.lower(), {"Pause": "paused", "Save": "saved", "Evaluate": "evaluated"}[name]
    button(panel, name).click()
    expect(panel.outcome()).to_have_text(f"{said}: asked…")
    assert panel.commands() == [("tour", said, {})]
    button(panel, name).click()  # twice is once
    assert len(panel.commands()) == 1
    panel.answer("c1")
    expect(panel.outcome()).to_have_text(f"{said}: sent; it takes effect at the next step…")
    panel.update(step=125, actions=[action("c1", 125, said)])
    expect(panel.outcome()).to_have_text(f"{past} at step 125")
    expect(panel.panel.get_by_role("status").filter(has_text=past)).to_have_count(1)
    button(panel, name).click()
    assert len(panel.commands()) == 2


def test_an_answer_that_comes_before_the_word_that_it_was_sent_is_an_answer(panel):
    button(panel, "Save").click()
    panel.update(actions=[action("quick", 121, "save")])
    panel.answer("quick")
    expect(panel.outcome()).to_have_text("saved at step 121")


def test_refused_by_the_run_or_by_the_kernel_says_why(panel):
    button(panel, "Evaluate").click()
    panel.answer("c1")
    panel.update(
        actions=[action("c1", 121, "evaluate", outcome="refused", reason="this run has no held-out text")]
    )
    expect(panel.outcome()).to_have_text("evaluate: refused: this run has no held-out text")
    expect(panel.outcome()).to_have_class(re.compile(r"\bbad\b"))
    button(panel, "Save").click()
    request = panel.sent("command")[-1]["request"]
    panel.say("refused", to=panel.viewer, request=request, reason="The disk is full.")
    expect(panel.outcome()).to_have_text("save: refused: The disk is full.")


def test_a_refusal_that_answers_nothing_is_a_problem(panel):
    panel.say("refused", to=panel.viewer, request=None, reason="This panel shows no run 'x'.")
    expect(panel.panel.get_by_role("alert")).to_contain_text("This panel shows no run 'x'.")


def test_a_run_that_ends_before_it_takes_a_command_ends_the_wait(panel):
    button(panel, "Save").click()
    panel.answer("c1")
    panel.update(state="lost")
    expect(panel.outcome()).to_have_text("save: the run ended before this took effect")


def test_an_answer_for_another_viewer_is_not_ours(panel):
    button(panel, "Save").click()
    panel.say("refused", to="somebody else", request=panel.sent("command")[-1]["request"], reason="no")
    expect(panel.outcome()).not_to_contain_text("refused")


def test_a_busy_kernel_is_spoken_of_until_it_answers(panel):
    button(panel, "Pause").click()
    expect(panel.outcome()).to_have_text(
        "pause: waiting: the kernel is busy with a cell; the run goes on."
        " In a terminal: nbllm runs steer tour pause",
        timeout=2000,
    )
    panel.answer("c1")
    expect(panel.outcome()).to_have_text("pause: sent; it takes effect at the next step…")


def test_what_to_type_in_a_terminal_is_one_command_whatever_the_names_are(page, static_url, fresh):
    fresh()
    commands = page.evaluate(
        """async (url) => {
          const { terminalCommand } = await import(`${url}requests.js`);
          const tour = { name: "tour", path: "/data/runs/tour" }, odd = { name: "it's; rm -rf", path: "/else/it's; rm -rf" };
          return [
            [{ action: "set", args: { lr: 0.002 } }, tour], [{ action: "rewind", args: { step: 300 } }, tour],
            [{ action: "sample", args: { prompt: "$(rm) 'x'" } }, tour], [{ action: "pause", args: {} }, odd],
            [{ action: "freeze", args: { patterns: ["blocks.0.*", "head"] } }, tour], [{ action: "rule", args: { name: "a", on: true } }, tour],
          ].map(([request, card]) => terminalCommand(request, card));
        }""",
        static_url,
    )
    assert commands == [
        "nbllm runs steer tour set lr=0.002",
        "nbllm runs steer tour rewind 300",
        "nbllm runs steer tour sample '$(rm) '\\''x'\\'''",
        "nbllm runs steer '/else/it'\\''s; rm -rf' pause",
        "nbllm runs steer tour freeze 'blocks.0.*' head",
        "",
    ]


def test_a_kernel_that_cannot_be_reached_is_an_outcome_too(panel):
    panel.page.evaluate("window.broken = true")
    button(panel, "Save").click()
    expect(panel.outcome()).to_have_text("save: refused: the kernel cannot be reached (comm is closed)")


def test_the_first_step_moves_no_button(panel):
    panel.snapshot(make_card(state="starting", step=0, facts={}, checkpoints=[]))
    button = panel.panel.get_by_role("button", name="Pause")
    before = button.bounding_box()
    assert texts(panel.panel.locator(".run-facts div"))[0] == "training loss \N{EN DASH}"
    facts = {"loss": 3.0, "lr": 9e-4, "tokens": 512, "tokens_per_second": 1e4, "memory": 1e9, "seconds": 1.0}
    panel.update(state="running", step=1, facts=facts)
    assert texts(panel.panel.locator(".run-facts div"))[0] == "training loss 3.000 nats/token"
    assert button.bounding_box() == before


def test_a_run_that_has_not_started_takes_commands_later(fresh):
    panel = fresh()
    panel.snapshot(make_card(state="starting", step=0, facts={}, checkpoints=[]))
    button(panel, "Pause").click()
    panel.answer()
    expect(panel.outcome()).to_contain_text("once the run has started")
    expect(panel.panel.locator(".panel-loss")).to_contain_text("no points yet")


def test_a_paused_run_is_resumed_by_the_same_button(panel):
    panel.update(state="paused")
    button(panel, "Resume").click()
    assert panel.commands() == [("tour", "resume", {})]
    expect(button(panel, "Pause")).to_have_count(0)


def test_stop_asks_once_more_and_can_be_called_off(panel):
    button(panel, "Stop").click()
    assert panel.commands() == []
    expect(button(panel, "Stop now")).to_be_focused()
    panel.page.keyboard.press("Escape")
    expect(button(panel, "Stop")).to_be_focused()
    button(panel, "Stop").click()
    button(panel, "Keep going").click()
    expect(button(panel, "Stop now")).to_be_hidden()
    assert panel.commands() == []
    button(panel, "Stop").click()
    button(panel, "Stop now").click()
    assert panel.commands() == [("tour", "stop", {})]
    panel.answer("s")
    panel.update(state="stopped", actions=[action("s", 121, "stop")], reason="asked to stop")
    expect(panel.outcome()).to_have_text("stopped at step 121")


def test_the_question_whether_to_stop_does_not_outlive_the_run(panel):
    button(panel, "Stop").click()
    panel.update(state="failed", reason="out of memory")
    expect(button(panel, "Stop now")).to_be_hidden()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"state": "stopped", "reason": "asked to stop"},
            "Stopped at step 120: asked to stop. It can continue from",
        ),
        (
            {"state": "failed", "reason": "CUDA out of memory."},
            "Failed at step 120: CUDA out of memory. It can",
        ),
        ({"state": "lost"}, "The trainer is gone since"),
    ],
)
def test_a_run_that_has_ended_says_what_happened_and_can_be_resumed(fresh, fields, sentence):
    panel = fresh()
    panel.snapshot(make_card(**fields))
    expect(panel.panel.locator(".run-ended")).to_contain_text(sentence)
    expect(panel.panel.locator(".run-ended")).to_contain_text("the newest good checkpoint, step 120")
    button(panel, "Resume").click()
    assert panel.commands() == [("tour", "start_again", {})]
    expect(panel.outcome()).to_contain_text("Resuming")
    panel.say("done", to=panel.viewer, request=1, text="Resumed at step 120.", run="tour")
    expect(panel.outcome()).to_have_text("Resumed at step 120.")
    panel.update(state="running")
    expect(panel.panel.locator(".run-ended")).to_be_hidden()


def test_what_ended_and_cannot_go_on_here_says_so(fresh):
    panel = fresh()
    panel.snapshot(make_card(state="stopped", cannot={"start_again": "run the script again"}))
    expect(panel.panel.locator(".run-ended")).to_contain_text(
        "It cannot be resumed here: run the script again."
    )
    expect(button(panel, "Resume")).to_have_attribute("aria-disabled", "true")


def test_what_a_run_cannot_is_greyed_out_and_says_why(fresh):
    panel = fresh()
    why = {
        name: f"no function to {name} was given"
        for name in ("rewind", "fork", "evaluate", "sample", "set", "rule")
    }
    panel.snapshot(
        make_card(cannot=why, rules=[{"name": "r", "when": "w", "do": "d", "on": True, "fired": 0}])
    )
    for name, reason in (("Evaluate", "evaluate"), ("Sample", "sample"), ("Fork", "fork"), ("Set", "set"),
                         ("Rewind to 120", "rewind")):  # fmt: skip
        greyed = button(panel, name).first
        expect(greyed).to_have_attribute("aria-disabled", "true")
        expect(greyed).to_have_attribute("title", why[reason])
        expect(greyed).to_have_attribute("aria-description", why[reason])
        greyed.click(force=True)  # grey, but it says why
        expect(panel.panel.get_by_text(why[reason]).first).to_be_visible()
    for label in ("Learning rate to set", "Name of the fork", "Prompt"):  # nor by Enter
        panel.panel.get_by_label(label).fill("0.01")
        panel.panel.get_by_label(label).press("Enter")
    panel.panel.get_by_role("switch").click(force=True)
    expect(panel.panel.get_by_role("switch")).to_be_checked()
    assert panel.commands() == []
    expect(button(panel, "Pause")).not_to_have_attribute("aria-disabled", "true")
    panel.update(cannot={})
    expect(button(panel, "Evaluate")).not_to_have_attribute("aria-disabled", "true")


def test_a_replay_that_has_ended_says_so_and_is_not_resumed(fresh):
    panel = fresh()
    panel.snapshot(make_card(state="replayed", replay_of="base", reason="the replay is over"))
    expect(panel.panel.locator(".run-state")).to_have_text("replayed")
    expect(panel.panel.locator(".run-origin")).to_have_text("replay of base")
    expect(panel.panel.locator(".run-ended")).to_be_hidden()
    expect(button(panel, "Resume")).to_have_count(0)
    expect(button(panel, "Pause")).to_have_attribute("aria-disabled", "true")


def test_nobody_is_left_to_steer_a_finished_run_but_it_can_be_forked(fresh):
    panel = fresh()
    panel.snapshot(make_card(state="finished"))
    for name in ("Pause", "Stop", "Save", "Evaluate", "Rewind to 120", "Sample"):
        expect(button(panel, name)).to_have_attribute(
            "title", re.compile("tour has finished; a fork can continue")
        )
    button(panel, "Fork").click()
    assert panel.commands() == [("tour", "fork", {"name": "tour-2", "step": None, "changes": {}})]


# The learning rate and other settings


def rate(panel: PanelPage) -> Locator:
    return panel.panel.get_by_label("Learning rate to set")


def test_the_learning_rate_tells_asked_from_applied(panel):
    value = panel.panel.locator(".panel-lr .panel-value")
    expect(value).to_have_text("0.001 set; 0.00091 by schedule now")
    rate(panel).fill("0.002")
    expect(panel.outcome(".panel-lr")).to_have_text("Press Enter or Set to apply it.")
    rate(panel).press("Enter")
    assert panel.commands() == [("tour", "set", {"lr": 0.002})]
    panel.answer("c1")
    expect(panel.outcome(".panel-lr")).to_contain_text("lr=0.002: sent")
    expect(value).to_contain_text("0.001 set")
    settings = [setting("lr", 0.002), *make_card()["settings"][1:]]
    facts = {**make_card()["facts"], "lr": 0.002}
    panel.update(settings=settings, facts=facts, actions=[action("c1", 122, "set", "lr=0.002")])
    expect(panel.outcome(".panel-lr")).to_have_text("lr=0.002 applied at step 122")
    expect(value).to_have_text("0.002 applied")
    expect(rate(panel)).to_have_value("0.002")


def test_halve_double_and_the_slider_write_into_the_field(panel):
    button(panel, "Double the learning rate").click()
    expect(rate(panel)).to_have_value("0.002")
    button(panel, "Halve the learning rate").click()
    button(panel, "Halve the learning rate").click()
    expect(rate(panel)).to_have_value("0.0005")
    slider = panel.panel.get_by_label(re.compile("^Learning rate, from a tenth"))
    assert float(slider.input_value()) == pytest.approx(-0.3)
    slider.fill("1")
    expect(rate(panel)).to_have_value("0.01")
    slider.fill("0")
    expect(rate(panel)).to_have_value("0.001")
    assert panel.commands() == []
    rate(panel).fill("3e-4")
    assert float(slider.input_value()) == pytest.approx(-0.52)
    button(panel, "Set").first.click()
    assert panel.commands() == [("tour", "set", {"lr": 3e-4})]


@pytest.mark.parametrize("text", ["fast", "", "1,5", "1e999"])
def test_what_is_no_number_is_not_sent(panel, text):
    rate(panel).fill(text)
    expect(rate(panel)).to_have_attribute("aria-invalid", "true")
    rate(panel).press("Enter")
    assert panel.commands() == []


def test_a_refused_learning_rate_stays_in_the_field_to_be_mended(panel):
    rate(panel).fill("5")
    rate(panel).press("Enter")
    panel.answer("c1")
    refused = action("c1", 121, "set", "lr=5", outcome="refused", reason="lr must be at most 1, not 5.")
    panel.update(actions=[refused])
    expect(panel.outcome(".panel-lr")).to_have_text("lr=5: refused: lr must be at most 1, not 5.")
    expect(rate(panel)).to_have_value("5")


def test_a_loop_without_a_learning_rate_has_no_such_control(fresh):
    panel = fresh()
    panel.snapshot(make_card(settings=[]))
    expect(panel.panel.locator(".panel-lr")).to_be_hidden()


def test_other_settings_and_frozen_parts(panel):
    panel.panel.get_by_text("More settings").click()
    expect(panel.panel.locator(".panel-settings")).to_contain_text("Decoupled decay, on matrices only.")
    field = panel.panel.get_by_label("weight_decay to set")
    field.fill("x")
    button(panel, "Set weight_decay").click()
    line = panel.outcome(".nbllm-details")
    expect(line.first).to_have_text("weight_decay must be a number.")
    field.fill("0.2")
    field.press("Enter")
    panel.panel.get_by_label("Parts to freeze").fill("blocks.0.*, embedding.*")
    button(panel, "Freeze").click()
    assert panel.commands() == [
        ("tour", "set", {"weight_decay": 0.2}),
        ("tour", "freeze", {"patterns": ["blocks.0.*", "embedding.*"]}),
    ]
    panel.answer("f")
    frozen = action("f", 121, "freeze", "freeze blocks.0.*, embedding.*")
    panel.update(frozen=["blocks.0.*", "embedding.*"], actions=[frozen])
    expect(line.first).to_have_text("freeze blocks.0.*, embedding.* applied at step 121")
    expect(panel.panel.get_by_label("Parts to freeze")).to_have_value("")
    button(panel, "Unfreeze embedding.*").click()
    assert panel.commands()[-1] == ("tour", "unfreeze", {"patterns": ["embedding.*"]})
    panel.update(frozen=["*", "!layers[-2:]"])
    button(panel, "Freeze layers[-2:]").click()
    assert panel.commands()[-1] == ("tour", "freeze", {"patterns": ["layers[-2:]"]})


def test_a_loop_of_others_has_no_unit_and_no_schedule(panel):
    panel.update(loss_unit="", scheduled=False)
    facts = panel.panel.locator(".run-facts > div").all_inner_texts()
    assert [" ".join(fact.split()) for fact in facts[:3]] == [
        "training loss 3.214", "held-out loss 3.301", "held-out 1.612 bits/byte",
    ]  # fmt: skip
    expect(panel.panel.locator(".panel-lr .panel-value")).to_have_text("0.001 set; 0.00091 in the last step")
    chart = panel.panel.locator(".panel-loss .nbllm-chart")
    expect(chart).to_contain_text("loss")
    expect(chart).not_to_contain_text("nats")
    panel.update(loss_unit="nats/token")
    expect(chart).to_contain_text("loss, nats/token")


# Rewind and fork


def test_the_slider_goes_over_the_checkpoints_of_the_live_line(panel):
    panel.update(
        checkpoints=[checkpoint(40), checkpoint(60, on_branch=False), checkpoint(80), checkpoint(120)]
    )
    slider = panel.panel.get_by_label("Checkpoint", exact=True)
    expect(slider).to_have_attribute("aria-valuetext", "step 120")
    slider.focus()
    slider.press("ArrowLeft")
    panel.settle()
    expect(slider).to_have_attribute("aria-valuetext", "step 80")
    assert next(mark["label"] for mark in panel.marks() if mark["x"] == 80) == "rewind to 80"
    panel.update(checkpoints=[checkpoint(40), checkpoint(80), checkpoint(120), checkpoint(160)])
    expect(slider).to_have_attribute("aria-valuetext", "step 80")  # a new one does not move the choice
    button(panel, "Rewind to 80").click()
    assert panel.commands() == [("tour", "rewind", {"step": 80})]
    panel.answer("r")
    done = action("r", 170, "rewind", "rewind to 80", args={"to": 80})
    panel.update(step=80, actions=[done], checkpoints=[checkpoint(40), checkpoint(80)])
    expect(panel.outcome(".panel-branching")).to_have_text("rewound from 170 to 80")
    assert "rewind to 80" not in [mark["label"] for mark in panel.marks()]


def test_without_a_checkpoint_there_is_no_way_back(panel):
    panel.update(checkpoints=[checkpoint(40, on_branch=False)])
    for name in ("Rewind", "Fork"):
        expect(button(panel, name)).to_have_attribute("title", "There is no checkpoint yet; Save makes one.")
    expect(panel.panel.get_by_label("Checkpoint", exact=True)).to_be_disabled()


def test_a_fork_takes_a_name_a_checkpoint_and_changes(panel):
    slider = panel.panel.get_by_label("Checkpoint", exact=True)
    slider.focus()
    slider.press("Home")
    name = panel.panel.get_by_label("Name of the fork")
    expect(name).to_have_value("tour-2")
    name.fill(" ")
    button(panel, "Fork").click()
    expect(panel.outcome(".panel-branching")).to_have_text("A fork needs a name.")
    name.fill("warmer")
    panel.panel.get_by_label("lr of the fork").fill("0.002")
    panel.panel.get_by_label("Change another setting in the fork").select_option("clip")
    expect(panel.panel.get_by_label("clip of the fork")).to_be_focused()
    panel.panel.get_by_label("clip of the fork").fill("tight")
    button(panel, "Fork").click()
    expect(panel.outcome(".panel-branching")).to_have_text("clip of the fork must be a number.")
    panel.panel.get_by_label("clip of the fork").fill("0.5")
    button(panel, "Fork").click()
    assert panel.commands() == [
        ("tour", "fork", {"name": "warmer", "step": 40, "changes": {"lr": 0.002, "clip": 0.5}})
    ]
    panel.say("done", to=panel.viewer, request=1, text="warmer has begun.", run="warmer")
    expect(panel.outcome(".panel-branching")).to_have_text("warmer has begun.")
    expect(panel.panel.get_by_label("lr of the fork")).to_have_value("")
    panel.seq += 1
    panel.say(
        "update", seq=panel.seq, runs=[make_card("warmer", color=2, parent={"run": "tour", "step": 40})]
    )
    expect(panel.panel.locator(".run-name")).to_have_text("tour")  # nobody is taken away from what they do
    button(panel, "Steer warmer").click()
    expect(panel.panel.locator(".run-name")).to_have_text("warmer")
    expect(panel.panel.locator(".run-origin")).to_have_text("forked from tour at step 40")


def test_a_name_for_a_fork_is_one_that_no_run_has(fresh):
    panel = fresh()
    panel.snapshot(
        make_card("tour-2", name="tour-2"), make_card("tour-3"), make_card("tour-4", state="finished")
    )
    expect(panel.panel.get_by_label("Name of the fork")).to_have_value("tour-5")


# A family of runs


@pytest.fixture
def family(panel: PanelPage) -> PanelPage:
    """The panel after a fork has begun, with the fork's points."""
    panel.seq += 1
    fork = make_card("warmer", color=2, state="paused", step=200, parent={"run": "tour", "step": 80})
    panel.say("update", seq=panel.seq, runs=[fork])
    panel.points(steps_table(81, 200, seed=2), run="warmer")
    return panel


def test_a_fork_appears_as_a_chip_and_a_curve_of_its_own_colour(family):
    chips = family.panel.locator(".panel-chip")
    assert texts(chips) == ["tour running", "warmer paused"]
    drawn = family.drawn()
    assert drawn["warmer smoothed"]["color"] == "--nbllm-series-2"
    assert list(drawn)[-1] == "tour held-out"  # what is steered is drawn above the others
    assert list(family.drawn("memory")) == ["warmer", "tour"]


def test_a_chip_gives_the_controls_to_its_run(family):
    rate(family).fill("0.5")
    button(family, "warmer paused").click()
    expect(family.panel.locator(".run-name")).to_have_text("warmer")
    expect(rate(family)).to_have_value("0.001")  # what was typed is the other run's
    button(family, "Resume").click()
    assert family.commands() == [("warmer", "resume", {})]
    button(family, "tour running").click()
    expect(rate(family)).to_have_value("0.5")
    expect(family.outcome()).to_have_text("")
    expect(button(family, "tour running")).to_have_attribute("aria-pressed", "true")


def test_an_eye_hides_a_runs_curves(family):
    eye = button(family, "Draw warmer")
    eye.click()
    family.settle()
    assert not [key for key in family.drawn() if key.startswith("warmer")]
    expect(eye).to_have_attribute("aria-pressed", "false")
    eye.click()
    family.settle()
    assert "warmer smoothed" in family.drawn()


# Samples, rules, warnings, actions


def test_the_output_of_the_rank_that_failed_comes_first_and_is_open(panel):
    section = panel.panel.locator(".panel-output")
    expect(section).to_be_hidden()
    outputs = [{"rank": rank, "failed": False, "text": f"rank {rank} prints"} for rank in (0, 1)]
    panel.update(outputs=outputs)
    expect(section).to_be_visible()
    expect(section.locator("pre").first).to_be_hidden()
    section.locator("summary").first.click()
    expect(section.locator("pre").first).to_have_text("rank 0 prints")
    panel.update(outputs=[{"rank": 1, "failed": True, "text": HOSTILE}, outputs[0]])
    assert texts(section.locator("summary")) == ["rank 1, which failed first", "rank 0"]
    panel.snapshot(make_card("other", outputs=[{"rank": 3, "failed": True, "text": HOSTILE}]))
    expect(section.locator("pre")).to_be_visible()
    expect(section.locator("pre")).to_contain_text("<script>window.hacked=1</script><img src=x")
    assert panel.page.evaluate("window.hacked") is None


def test_a_sample_stands_beside_that_of_the_reference(panel):
    panel.update(samples=[sample(3, "Say <b>", " yes", reference=HOSTILE)])
    both = panel.panel.locator(".panel-newest .panel-beside > div")
    expect(both).to_have_count(2)
    assert both.nth(0).text_content() == "the runSay <b> yes"
    assert both.nth(1).text_content() == f"the referenceSay <b>{HOSTILE}".replace("\u202e", "\ufffd")
    one, other = (both.nth(place).bounding_box() for place in (0, 1))
    assert one["y"] == other["y"] and one["x"] + one["width"] <= other["x"]


def test_a_prompt_is_sent_by_enter_and_its_sample_shown(panel):
    prompt = panel.panel.get_by_label("Prompt")
    prompt.fill("def add(a, b):")
    prompt.press("Shift+Enter")
    prompt.type("    return")
    panel.panel.get_by_label("Maximum number of tokens").fill("12")
    prompt.press("Enter")
    assert panel.commands() == [
        ("tour", "sample", {"prompt": "def add(a, b):\n    return", "max_new_tokens": 12})
    ]
    expect(panel.outcome(".panel-samples")).to_have_text("sample: asked…")
    panel.answer("s")
    written = sample(121, "def add(a, b):\n    return", " a + b", id="s")
    panel.update(
        samples=[sample(50, "old", " one", actor="loop"), written], actions=[action("s", 121, "sample")]
    )
    expect(panel.outcome(".panel-samples")).to_have_text("sampled at step 121")
    newest = panel.panel.locator(".panel-newest pre")
    assert newest.text_content() == "def add(a, b):\n    return a + b"
    expect(newest.locator("b")).to_have_text("def add(a, b):\n    return")
    expect(panel.panel.locator(".panel-newest figcaption")).to_contain_text("step 121, asked by person")
    panel.panel.get_by_text("1 older").click()
    expect(panel.panel.locator(".panel-samples details pre")).to_have_text("old one")
    expect(panel.panel.locator(".panel-samples details figcaption")).not_to_contain_text("asked by")


@pytest.mark.parametrize("tokens", ["0", "many", "1.5", "-3"])
def test_a_number_of_tokens_that_is_none_is_not_sent(panel, tokens):
    panel.panel.get_by_label("Maximum number of tokens").fill(tokens)
    button(panel, "Sample").click()
    expect(panel.outcome(".panel-samples")).to_have_text(
        "The number of tokens must be a whole number, 1 or more."
    )
    assert panel.commands() == []


def test_the_log_is_newest_first_with_refused_and_superseded_set_apart(panel):
    yesterday = time.time() - 30 * 3600
    panel.update(
        num_actions=3,
        actions=[
            action("1", 10, "set", "lr=0.1", effective=False, time=yesterday),
            action("2", 20, "set", "lr=9", outcome="refused", reason="too much", actor="agent:a"),
            action("3", 30, "pause"),
        ],
    )
    rows = panel.panel.locator(".panel-log tbody tr")
    assert [text.split()[0] for text in texts(rows)] == ["30", "20", "10"]
    expect(rows.nth(1)).to_contain_text("refused: too much")
    expect(rows.nth(1).locator("td.bad")).to_have_count(1)
    expect(rows.nth(2)).to_have_class("superseded")
    assert re.search(r"\d\d:\d\d:\d\d$", texts(rows)[0])
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d$", texts(rows)[2])


def test_a_long_log_is_shown_whole_on_demand(panel):
    panel.update(num_actions=20, actions=[action(str(i), i, "save") for i in range(20)])
    rows = panel.panel.locator(".panel-log tbody tr")
    expect(rows).to_have_count(8)
    panel.panel.get_by_text("Show 12 earlier").click()
    expect(rows).to_have_count(20)


def test_rules_are_listed_and_switched(panel):
    rule = {"name": "spike", "when": "loss > 2", "do": "rewind", "on": True, "fired": 2, "last_step": 90}
    panel.update(rules=[rule])
    row = panel.panel.locator(".panel-rule")
    assert texts(row) == ["spike when loss > 2 rewind fired 2×, last at step 90"]  # noqa: RUF001
    switch = panel.panel.get_by_role("switch", name="Rule spike")
    expect(switch).to_be_checked()
    switch.click()
    assert panel.commands() == [("tour", "rule", {"name": "spike", "on": False})]
    panel.answer("r")
    panel.update(actions=[action("r", 121, "rule", "rule spike off", outcome="refused", reason="no")])
    expect(switch).to_be_checked()  # as the run says
    switch.click()
    panel.answer("r2")
    panel.update(rules=[{**rule, "on": False}], actions=[action("r2", 122, "rule", "rule spike off")])
    expect(switch).not_to_be_checked()
    expect(panel.outcome(".panel-history")).to_have_text("rule spike off applied at step 122")


def test_warnings_and_problems_of_the_record_are_shown(panel):
    panel.update(
        warnings=[{"step": 88, "text": "loss nan: step skipped", "time": time.time()}], num_warnings=3,
        problems=["events/a-1.jsonl: 2 lines could not be read"],
    )  # fmt: skip
    expect(panel.panel.locator(".panel-history")).to_contain_text("Step 88: loss nan: step skipped")
    expect(panel.panel.locator(".panel-history")).to_contain_text('2 earlier: run.events("warning")')
    expect(panel.panel.locator(".panel-head")).to_contain_text("2 lines could not be read")


# What a person does stays


def test_updates_take_nothing_from_who_is_typing(panel):
    prompt = panel.panel.get_by_label("Prompt")
    prompt.fill("half a sent")
    prompt.evaluate("(node) => node.setSelectionRange(4, 6)")
    rate(panel).fill("0.00")
    prompt.focus()
    for step in range(121, 126):
        panel.update(step=step, settings=[setting("lr", step / 1e5), *make_card()["settings"][1:]])
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value("half a sent")
    assert prompt.evaluate("(node) => [node.selectionStart, node.selectionEnd]") == [4, 6]
    expect(rate(panel)).to_have_value("0.00")


def test_rows_that_go_away_leave_the_focus_where_it_is(panel):
    rules = [
        {"name": name, "when": "w", "do": "d", "on": True, "fired": 0, "last_step": None} for name in "abc"
    ]
    panel.update(rules=rules)
    panel.panel.get_by_role("switch", name="Rule c").focus()
    panel.update(rules=rules[1:])
    expect(panel.panel.get_by_role("switch", name="Rule c")).to_be_focused()


def test_nothing_jumps_when_a_run_goes_on(panel):
    tops = "Array.from(document.querySelectorAll('.panel-loss, .panel-boxes, .panel-samples'), (n) => n.getBoundingClientRect().top)"
    before = panel.page.evaluate(tops)
    button(panel, "Save").click()
    panel.answer("c1")
    panel.update(step=121, actions=[action("c1", 121, "save")], facts={**make_card()["facts"], "loss": 10.5})
    assert panel.page.evaluate(tops) == before


def test_it_draws_at_most_ten_times_a_second_whatever_comes(panel):
    draws = panel.page.evaluate(
        """async (seq) => {
          const before = draws, began = performance.now();
          while (performance.now() - began < 1000) {
            say({ type: "update", seq: ++seq, runs: [{ key: "tour", step: seq }] });
            await new Promise((done) => setTimeout(done, 4));
          }
          return draws - before;
        }""",
        panel.seq,
    )
    assert 3 <= draws <= 12


def test_a_hidden_tab_draws_nothing_until_it_is_seen_again(panel):
    panel.page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    before = panel.page.evaluate("draws")
    panel.update(step=140)
    assert panel.page.evaluate("draws") == before
    panel.page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(panel.panel.locator(".run-step")).to_have_text("step 140 of 600")


# Views


def test_two_views_of_a_model_agree_and_look_at_it_each_in_its_own_way(panel):
    panel.page.evaluate("mount()")
    panel.settle()
    assert len(panel.sent("hello")) == 1
    first, second = (panel.page.locator(".nbllm-training").nth(i) for i in (0, 1))
    expect(second.locator(".run-step")).to_have_text("step 120 of 600")
    second.get_by_role("button", name="Pause").click()
    panel.answer("c1")
    panel.update(state="paused", actions=[action("c1", 121, "pause")])
    for view in (first, second):
        expect(view.locator(".run-state")).to_have_text("paused")
        expect(view.locator(".panel-controls .panel-outcome")).to_have_text("paused at step 121")
    second.get_by_role("button", name="tokens", exact=True).click()
    expect(first.get_by_role("button", name="steps")).to_have_attribute("aria-pressed", "true")
    panel.page.evaluate("views[0].close()")  # the view whose handle hears the kernel
    assert panel.sent("bye") == []
    panel.update(step=130)
    expect(panel.page.locator(".nbllm-training")).to_have_count(1)
    expect(panel.panel.locator(".run-step")).to_have_text("step 130 of 600")
    panel.page.evaluate("views[1].close()")
    assert [message["viewer"] for message in panel.sent("bye")] == [panel.viewer]
    assert panel.page.evaluate("listeners.size") == 0


def test_a_view_that_is_made_again_looks_as_the_one_before(family):
    prompt = family.panel.get_by_label("Prompt")
    button(family, "warmer paused").click()
    prompt.fill("to be conti")
    button(family, "tokens").click()
    family.panel.get_by_label("Smoothing").fill("5")
    family.panel.get_by_text("More settings").click()
    family.settle()
    family.page.evaluate("views[0].close()")
    family.page.evaluate("mount()")
    assert len(family.sent("hello")) == 2
    family.snapshot(make_card(), make_card("warmer", color=2))
    expect(family.panel.locator(".run-name")).to_have_text("warmer")
    expect(prompt).to_have_value("to be conti")
    expect(button(family, "tokens")).to_have_attribute("aria-pressed", "true")
    expect(family.panel.get_by_label("Smoothing")).to_have_value("5")
    expect(family.panel.get_by_label("weight_decay to set")).to_be_visible()


# The keyboard, and who does not see the panel


def test_keys_steer_when_the_panel_has_the_focus(panel):
    panel.page.evaluate(
        "window.heard = []; document.addEventListener('keydown', (event) => heard.push(event.key))"
    )
    panel.panel.focus()
    for key in ("p", "s", "e", "Control+s", "d", "d"):
        panel.page.keyboard.press(key)
    assert [name for _, name, _ in panel.commands()] == ["pause", "save", "evaluate"]
    prompt = panel.panel.get_by_label("Prompt")
    prompt.focus()
    panel.page.keyboard.press("p")
    expect(prompt).to_have_value("p")
    assert len(panel.commands()) == 3
    assert panel.page.evaluate("heard") == []  # the notebook hears nothing of it
    panel.update(state="paused", actions=[])
    panel.panel.focus()
    panel.page.keyboard.press("p")
    assert panel.commands()[-1][1] == "resume"


def test_everything_is_reached_by_tab_is_named_and_keeps_the_notebooks_keys_away(family):
    family.update(
        rules=[{"name": "spike", "when": "w", "do": "d", "on": True, "fired": 0, "last_step": None}]
    )
    family.panel.get_by_text("More settings").click()
    nodes = family.page.evaluate("""() => {
      const shown = [...document.querySelectorAll(".nbllm-training :is(button, input, select, textarea, summary)")].filter(
        (node) => node.checkVisibility({ visibilityProperty: true }) && !node.disabled);
      const name = (node) => node.getAttribute("aria-label") || node.labels?.[0]?.innerText || node.textContent || "";
      return shown.map((node, i) => { node.dataset.place = i; return name(node).trim(); });
    }""")
    assert len(nodes) > 25
    assert "" not in nodes
    family.panel.focus()
    reached = set()
    for _ in range(len(nodes) + 20):
        family.page.keyboard.press("Tab")
        place, marked = family.page.evaluate(
            "[document.activeElement.dataset.place, document.activeElement.dataset.lmSuppressShortcuts]"
        )
        if place is not None:
            reached.add(int(place))
            assert marked == "true"
    assert [name for place, name in enumerate(nodes) if place not in reached] == []


def test_outcomes_are_spoken_and_steps_are_not(panel):
    spoken = panel.panel.locator(".panel-unseen[role=status]")
    panel.update(step=121)
    expect(spoken).to_have_text("")
    panel.update(state="failed", reason="x")
    expect(spoken).to_have_text("tour is failed")


@pytest.mark.parametrize("width", [320, 480, 1100])
def test_it_fits_into_its_cell(fresh, width):
    panel = fresh(width=width)
    panel.page.set_viewport_size({"width": width + 20, "height": 900})
    rules = [
        {
            "name": "spike",
            "when": "loss > 1.5 * median(loss, 50)",
            "do": "rewind",
            "on": True,
            "fired": 0,
            "last_step": None,
        }
    ]
    panel.snapshot(
        make_card("a-very-long-name-" * 4, rules=rules, actions=[action("1", 3, "set", "lr=0.1")], samples=[sample(3, "p", "x" * 300)]),
        make_card("other", color=2),
    )  # fmt: skip
    panel.panel.get_by_text("More settings").click()
    panel.settle()
    sticking = panel.page.evaluate("""() => {
      const root = document.querySelector(".nbllm-training"), right = root.getBoundingClientRect().right;
      return [...root.querySelectorAll("button, input, select, textarea, pre, p, dd, .run-head, .panel-rule, .nbllm-chart")].filter(
        (node) => node.checkVisibility() && node.getBoundingClientRect().right > right).map((node) => node.outerHTML.slice(0, 120));
    }""")
    assert sticking == []
    assert panel.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# What is hostile, and what goes wrong


def test_hostile_text_is_shown_everywhere_and_does_nothing(fresh):
    panel = fresh()
    hostile: dict[str, Any] = dict(
        state="failed", reason=HOSTILE, path=HOSTILE, host=HOSTILE, where=HOSTILE, frozen=[HOSTILE], problems=[HOSTILE],
        metrics=[HOSTILE], cannot={"save": HOSTILE}, num_warnings=1, num_actions=1,
        settings=[setting("lr", 0.1, help=HOSTILE), setting(HOSTILE, 1, unit=HOSTILE, help=HOSTILE, range=HOSTILE)],
        actions=[action(HOSTILE, 3, "set", HOSTILE, actor=HOSTILE), action("2", 4, HOSTILE, HOSTILE, outcome="refused", reason=HOSTILE)],
        samples=[sample(3, HOSTILE, HOSTILE, actor=f"agent:{HOSTILE}"), sample(4, HOSTILE, HOSTILE)],
        warnings=[{"step": 1, "text": HOSTILE, "time": 1e30}],
        rules=[{"name": HOSTILE, "when": HOSTILE, "do": HOSTILE, "on": True, "fired": 0, "last_step": None}],
    )  # fmt: skip
    panel.snapshot(
        make_card(HOSTILE, **hostile),
        make_card("__proto__", name=HOSTILE, color=2, parent={"run": HOSTILE, "step": 3}),
    )
    panel.points({**steps_table(1, 50), HOSTILE: [1.0] * 50, "__proto__": [2.0] * 50}, run=HOSTILE)
    panel.say("problem", to=panel.viewer, text=HOSTILE)
    panel.panel.get_by_text("More settings").click()
    panel.panel.get_by_text("1 older").click()
    chart = panel.panel.locator(".nbllm-chart").first
    chart.hover()
    chart.focus()
    chart.press("r")
    button(panel, "Fork").click()
    panel.say("refused", to=panel.viewer, request=1, reason=HOSTILE)
    panel.page.wait_for_timeout(100)
    shown = panel.panel.inner_text()
    assert shown.count("<script>window.hacked=1</script>") > 15
    assert "\u202e" not in shown
    attributes = """(root) => [...root.querySelectorAll("*")].flatMap((node) => [...node.attributes].filter(
      ({ name }) => !(name === "value" && node.tagName === "OPTION")).map(({ value }) => value))"""  # names a setting, unseen
    assert not [value for value in panel.panel.evaluate(attributes) if "\u202e" in value]
    assert panel.panel.locator("script, img").count() == 0
    assert panel.page.evaluate("window.hacked") is None
    assert panel.page.evaluate("({}).polluted") is None
    assert panel.errors == []


def test_a_problem_in_the_kernel_is_shown_and_can_be_put_away(panel):
    panel.say("problem", text="OSError: the disk is gone")
    expect(panel.panel.get_by_role("alert")).to_contain_text("OSError: the disk is gone")
    button(panel, "Dismiss").click()
    expect(panel.panel.get_by_role("alert")).to_be_hidden()


def test_points_that_make_no_sense_are_a_problem_and_spoil_nothing(panel):
    panel.page.evaluate(
        """say({ type: "points", run: "tour", series: "steps", mode: "append", cut: null, total: 200,
                 columns: [{ name: "step", dtype: "float64", length: 3 }] }, null)"""
    )
    panel.page.evaluate(
        """for (const listener of listeners) listener({ type: "points", run: "tour", series: "steps", mode: "append", cut: null,
             total: 200, columns: [{ name: "step", dtype: "float64", length: 3 }] }, [new DataView(new ArrayBuffer(5))])"""
    )
    expect(panel.panel.get_by_role("alert")).to_contain_text("cannot be 5 bytes")
    panel.points(steps_table(121, 122), mode="append", cut=None, total=122)
    assert len(panel.drawn()["tour raw"]["x"]) == 122


def test_an_error_in_the_panel_itself_is_shown(panel):
    panel.update(checkpoints=None)
    expect(panel.panel.get_by_role("alert")).to_be_visible()
    panel.update(checkpoints=[checkpoint(160)])
    expect(button(panel, "Rewind to 160")).to_be_visible()


def test_a_run_that_was_renamed_goes_on_under_its_new_name(panel):
    panel.snapshot(make_card("renamed"))
    panel.points(steps_table(1, 120), run="renamed")
    expect(panel.panel.locator(".run-name")).to_have_text("renamed")
    assert {key.split()[0] for key in panel.drawn()} == {"renamed"}
    button(panel, "Save").click()
    assert panel.commands() == [("renamed", "save", {})]


# The processes of a run


def ranks(*computing: float | None, seconds: float = 0.5) -> dict[str, Any]:
    slowest = max((value for value in computing if value is not None), default=None)
    return {
        "ranks_step": 120,
        "ranks": [
            {"rank": rank, "memory": 1.1e9 + rank * 2e8, "seconds": seconds, "computing": value,
             "slow": value is not None and value == slowest and value > 2 * min(computing)}
            for rank, value in enumerate(computing)
        ],
    }  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_ranks_show_memory_and_for_whom_the_others_wait(fresh, theme):
    panel = fresh(theme=theme)
    panel.snapshot()
    shown = panel.panel.locator("details", has=panel.page.locator(".panel-ranks"))
    expect(shown).to_be_hidden()  # one process
    panel.update(**ranks(0.14, 0.46, 0.15, 0.13))
    expect(shown.locator("summary")).to_have_text("4 ranks, step 120: the others wait for rank 1")
    shown.locator("summary").click()
    panel.settle()
    rows = texts(shown.locator("tbody tr"))
    assert rows == [
        "0 1.1 GB 0.5 s 28 %",
        "1 1.3 GB 0.5 s 92 % slowest",
        "2 1.5 GB 0.5 s 30 %",
        "3 1.7 GB 0.5 s 26 %",
    ]
    if folder := os.environ.get("NBLLM_PICTURES"):
        shown.screenshot(path=f"{folder}/ranks-{theme}.png")
    panel.update(**ranks(*[None] * 300))
    expect(shown.locator("summary")).to_have_text("300 ranks, step 120")
    expect(shown.locator("tbody tr").first).to_contain_text("not measured")
    assert shown.bounding_box()["height"] < 420


# What the ranks did in some steps


def profile(run_folder: Path, *, step: int = 40, ranks: int = 2, **fields: Any) -> dict[str, Any]:
    """Return the card of a profile, as the kernel makes it of what the ranks have written."""
    made = profile_card(StepProfile(write_profile(run_folder, step, *map(summary, range(ranks)))))
    assert made is not None
    return {**made, **fields}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_profile_is_asked_for_and_drawn(fresh, tmp_path, theme):
    panel = fresh(theme=theme)
    panel.snapshot()
    part = panel.panel.locator(".panel-profile")
    expect(part.locator("summary")).to_have_text("Profile")
    part.locator("summary").click()
    button(panel, "Profile 3 steps").click()
    assert panel.commands() == [("tour", "profile", {"steps": 3})]
    panel.answer("p1")
    panel.update(step=121, actions=[action("p1", 120, "profile", args={"steps": 3})])
    expect(panel.outcome(".panel-profile")).to_have_text("Steps 121 to 123 are being profiled…")
    expect(button(panel, "Profile 3 steps")).to_have_attribute("aria-disabled", "true")
    panel.update(step=125, profile=profile(tmp_path, step=120, folder="/runs/tour/profiles/step-00000120"))
    expect(part.locator("summary")).to_have_text("Profile: 3 steps from step 120 on, 2 ranks")
    expect(panel.outcome(".panel-profile")).to_have_text("profiled at step 120")
    expect(button(panel, "Profile 3 steps")).not_to_have_attribute("aria-disabled", "true")
    assert texts(part.locator("tbody tr")) == [
        "0 10.00 ms 38.0 % 25.0 % 15.0 % 10.0 % 20.0 % 17.0 %",
        "1 10.00 ms 42.0 % 25.0 % 15.0 % 10.0 % 20.0 % 17.0 %",
    ]
    assert part.locator(".profile-legend").inner_text().split() == [
        "computing", "communication", "data", "optimizer", "idle",
    ]  # fmt: skip
    bars = part.locator("svg").nth(1).locator("rect.kind-communication")
    expect(bars).to_have_count(3)
    assert bars.nth(1).locator("title").evaluate("(node) => node.textContent") == (
        "rank 1: communication, 2.50 ms, from 14.00 ms to 16.50 ms"
    )
    expect(part).to_contain_text("The whole traces of 2 ranks")
    expect(part.locator("code")).to_have_text("/runs/tour/profiles/step-00000120")
    if folder := os.environ.get("NBLLM_PICTURES"):
        part.screenshot(path=f"{folder}/profile-{theme}.png")
    colours = part.locator("svg").first.evaluate(
        """(svg) => ["computing", "communication", "data", "optimizer", "idle"].map(
             (kind) => getComputedStyle(svg.querySelector(`.kind-${kind}`)).fill)"""
    )
    assert len(set(colours)) == 5
    assert colours[0] == {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}[theme]


def test_a_profile_is_drawn_again_only_when_it_is_new_and_fits(fresh, tmp_path):
    panel = fresh(width=480)
    panel.snapshot(make_card(profile=profile(tmp_path, ranks=64, hidden=36, folder=HOSTILE)))
    part = panel.panel.locator(".panel-profile")
    expect(part.locator("svg")).to_have_count(0)  # closed
    part.locator("summary").click()
    expect(part.locator("svg")).to_have_count(64)
    expect(part).to_contain_text("The first 64 of 100 ranks.")
    expect(part).to_contain_text("<script>window.hacked=1</script>")
    first = part.locator("svg").first.element_handle()
    panel.update(step=130)
    assert first.evaluate("(svg) => svg.isConnected")
    assert part.locator(".profile-lanes").bounding_box()["height"] < 420
    right = panel.panel.evaluate("(node) => node.getBoundingClientRect().right")
    assert part.evaluate("(node) => node.getBoundingClientRect().right") <= right
    panel.update(profile=profile(tmp_path, step=60, ranks=1))
    expect(part.locator("svg")).to_have_count(1)
    panel.update(profile=None, state="finished")
    expect(part.locator("svg")).to_have_count(0)
    button(panel, "Profile 3 steps").dispatch_event("click")
    expect(panel.outcome(".panel-profile")).to_contain_text("has finished")
    assert panel.commands() == []
