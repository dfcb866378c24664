"""The runs panel's front end in Chromium: on a model that only records, and on the real panel."""

import base64
import re
import time

import pytest

from nbllm.runs.events import EventWriter
from nbllm.runs.listing import list_runs
from nbllm.widgets.modules import script, style
from nbllm.widgets.runs import RunsPanel
from tests.widgets.test_runs import grown, write_steps

PAGE = """<!doctype html><html data-jp-theme-light="true"><head><meta charset="utf-8">
<style>body { margin: 8px }</style></head>
<body><div id="el" style="background: var(--nbllm-ground)"></div></body></html>"""
MODEL = """async ([code, css]) => {
  document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  window.handlers = new Set();
  window.sent = [];
  window.alerts = 0;
  window.alert = () => window.alerts++;
  window.model = {
    send: (content, _, buffers) => sent.push(structuredClone(content)),
    on: (name, handler) => (name === "msg:custom" ? handlers.add(handler) : (window.liveness = handler)),
    off: (name, handler) => handlers.delete(handler),
  };
  window.deliver = (content, buffers) => {
    const views = buffers.map((text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer));
    for (const handler of handlers) handler(content, views);
  };
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { default: front } = await import(url);
  window.cleanup = front.render({ model, el: document.getElementById("el") });
}"""


class Front:
    """The front end in a page."""

    def __init__(self, page):
        self.page = page
        self.errors = []
        page.on("pageerror", lambda error: self.errors.append(error))
        page.set_content(PAGE)
        page.evaluate(MODEL, [script("runs"), style("runs")])
        self.sent = []
        self.take_sent()
        self.viewer = self.sent[0]["viewer"]

    def take_sent(self):
        new = self.page.evaluate("sent.splice(0)")
        self.sent += new
        return new

    def deliver(self, content, buffers=()):
        self.page.evaluate(
            "([content, buffers]) => deliver(content, buffers)",
            [content, [base64.b64encode(data).decode() for data in buffers or ()]],
        )

    def give(self, *rows, whole=True, seq=1, gone=(), unreadable=()):
        self.deliver(
            {
                "type": "runs",
                "seq": seq,
                "now": time.time(),
                "folder": "runs",
                "whole": whole,
                "rows": list(rows),
                "gone": list(gone),
                "unreadable": list(unreadable),
            }
            | ({"to": self.viewer} if whole else {})
        )

    def names(self):
        return self.page.locator(".runs-table .runs-name").all_inner_texts()

    def sort(self, label):
        self.page.get_by_role("button", name=label, exact=True).click()

    def aria_sort(self, label):
        return self.page.get_by_role("columnheader", name=label, exact=True).get_attribute("aria-sort")


@pytest.fixture
def front(page):
    front = Front(page)
    yield front
    page.evaluate("cleanup()")
    assert not front.errors
    assert front.take_sent()[-1]["type"] == "bye"
    assert page.evaluate("[handlers.size, document.getElementById('el').children.length, alerts]") == [
        0,
        0,
        0,
    ]


def row(name, *, at=1.0, parent=None, **fields):
    usual = {"state": "finished", "reason": "", "step": 40, "steps": 100, "loss": 3.5, "held_out": 2.0}
    return {
        "name": name,
        **usual,
        "parent": parent,
        "replay_of": "",
        "created": at,
        "time": at,
        "open": f"nb.attach({name!r})",
    } | fields


def fork(run, step=20):
    return {"run": run, "step": step}


FAMILY = [
    row("base", at=100.0, loss=3.0, step=900),
    row("other", at=300.0, loss=None, held_out=None, state="lost"),
    row("late", at=210.0, parent=fork("base", 80), loss=2.0),
    row("early", at=220.0, parent=fork("base", 20), loss=4.0, state="running"),
    row("run-10", at=230.0, parent=fork("early", 30), loss=1.0),
    row("run-9", at=240.0, parent=fork("elsewhere", 5), loss=5.0),
]


def test_says_hello_and_that_there_are_no_runs(front):
    assert [message["type"] for message in front.sent] == ["hello"]
    assert "Waiting for the kernel" in front.page.locator("#el").inner_text()
    front.give()
    assert (
        front.page.locator("#el").inner_text().strip()
        == "No runs in runs/ yet: nb.train(lm, data) makes one."
    )
    front.give(row("first"), seq=2, whole=False)
    assert front.names() == ["first"]
    assert not front.page.get_by_text("No runs in").is_visible()


def test_what_is_for_another_viewer_is_not_ours(front):
    front.deliver(
        {"type": "runs", "to": "somebody", "seq": 1, "whole": True, "rows": [row("theirs")], "gone": []}
    )
    assert front.names() == []


def test_a_kernel_that_falls_silent_greys_the_list_until_it_is_heard_again(front):
    front.give(*FAMILY)
    note = front.page.locator(".nbllm-loss")
    assert not note.is_visible()
    front.page.evaluate("() => { window.was = Date.now; Date.now = () => was() + 20_000; }")
    note.wait_for()
    assert "The kernel has not been heard since" in note.inner_text()
    assert "nb.runs()" in note.inner_text()
    buttons = front.page.locator(":is(button, input):visible")
    assert buttons.evaluate_all("(all) => all.every((one) => one.closest('[inert]'))")
    front.page.evaluate("() => { Date.now = was; }")
    front.deliver({"type": "alive"})
    note.wait_for(state="hidden")
    front.page.get_by_role("checkbox", name="Compare base").check()


def test_a_closed_comm_greys_the_list_at_once(front):
    front.give(*FAMILY)
    front.page.evaluate("() => { model.send = () => { throw new Error('Cannot send'); }; liveness(); }")
    front.page.locator(".nbllm-loss").wait_for()
    front.page.evaluate("() => { model.send = (content) => sent.push(content); }")  # for the test's end


def manage(front, name, what):
    """Open a run's row, and begin to rename or delete it."""
    front.page.get_by_role("button", name=f"Open {name}").click()
    front.page.get_by_role("button", name=f"{what} {name}", exact=True).click()


def test_a_run_is_renamed(front):
    front.give(*FAMILY)
    for name in ("base", "late"):
        front.page.get_by_role("checkbox", name=f"Compare {name}").check()
    manage(front, "base", "Rename")
    field = front.page.get_by_label("New name of base")
    assert field.input_value() == "base"
    field.fill("taken")
    field.press("Enter")
    (asked,) = [message for message in front.take_sent() if message["type"] == "rename"]
    assert (asked["run"], asked["name"]) == ("base", "taken")
    front.deliver(
        {"type": "refused", "to": front.viewer, "request": asked["request"], "reason": "It is taken."}
    )
    front.page.get_by_text("It is taken.").wait_for()
    field.fill("better")
    front.page.get_by_role("button", name="Rename", exact=True).click()
    asked = front.take_sent()[-1]
    done = {
        "type": "done",
        "to": front.viewer,
        "request": asked["request"],
        "text": "Done.",
        "name": "better",
    }
    front.deliver(done)
    front.give(row("better"), gone=["base"], whole=False, seq=2)
    assert "better" in front.names() and "base" not in front.names()
    front.page.get_by_text("Done.").wait_for()
    assert front.page.get_by_role("checkbox", name="Compare better").is_checked()
    assert [message["runs"] for message in front.take_sent()] == [["better", "late"]]


def test_a_run_is_deleted_only_when_that_is_confirmed(front):
    front.give(*FAMILY)
    manage(front, "base", "Delete")
    assert not [message for message in front.take_sent() if message["type"] == "delete"]
    front.page.get_by_role("button", name="Cancel").click()
    front.page.get_by_role("button", name="Delete base", exact=True).click()
    front.page.keyboard.press("Escape")
    front.page.get_by_role("button", name="Delete base", exact=True).press("Enter")
    front.page.get_by_role("button", name="Delete for good").click()
    (asked,) = [message for message in front.take_sent() if message["type"] == "delete"]
    assert asked["run"] == "base"
    front.deliver(
        {"type": "done", "to": front.viewer, "request": asked["request"], "text": "Deleted.", "name": ""}
    )
    front.give(gone=["base"], whole=False, seq=2)
    assert "base" not in front.names()


def test_a_live_run_can_be_neither_renamed_nor_deleted(front):
    front.give(*FAMILY)
    front.page.get_by_role("button", name="Open early").click()
    for what in ("Rename", "Delete"):
        button = front.page.get_by_role("button", name=f"{what} early", exact=True)
        assert button.is_disabled()
        assert "stop it first" in button.get_attribute("title")
    front.give(row("early", state="stopped"), whole=False, seq=2)
    front.page.get_by_role("button", name="Delete early", exact=True).click()
    front.give(row("early", state="running"), whole=False, seq=3)  # started again meanwhile
    assert not front.page.get_by_role("button", name="Delete for good").is_visible()


def test_a_family_stands_as_a_tree(front):
    front.give(*FAMILY)
    assert front.names() == ["other", "run-9", "base", "early", "run-10", "late"]
    rows = front.page.locator(".runs-table tbody tr")
    lines = [
        [s.get_attribute("class") for s in rows.nth(i).locator(".runs-lines span").all()] for i in range(6)
    ]
    assert lines == [[], [], [], ["runs-tee"], ["runs-line", "runs-elbow"], ["runs-elbow"]]
    assert "forked\xa0at\xa0step\xa020" in rows.nth(3).inner_text()
    assert "forked from elsewhere at\xa0step\xa05" in rows.nth(1).inner_text()
    assert front.page.get_by_role("status").first.inner_text() == "6 runs: 1 running, 1 lost, 4 finished"


def test_a_replay_stands_under_what_it_repeats(front):
    front.give(row("base", at=1.0), row("again", at=9.0, state="replayed", replay_of="base"),
               row("alone", at=0.5, state="replayed", replay_of="gone"))  # fmt: skip
    assert front.names() == ["base", "again", "alone"]
    rows = front.page.locator(".runs-table tbody tr")
    assert "replay" in rows.nth(1).inner_text() and "replayed" in rows.nth(1).inner_text()
    assert "replay of gone" in rows.nth(2).inner_text()
    assert front.page.get_by_role("status").first.inner_text() == "3 runs: 2 replayed, 1 finished"


def test_a_circle_of_parents_is_shown_all_the_same(front):
    front.give(row("a", parent=fork("b")), row("b", parent=fork("a")), row("self", parent=fork("self")))
    assert sorted(front.names()) == ["a", "b", "self"]


def test_every_column_sorts_and_the_tree_comes_back(front):
    front.give(*FAMILY)
    front.sort("Loss")
    assert front.names() == ["run-10", "late", "base", "early", "run-9", "other"]
    assert front.aria_sort("Loss") == "ascending"
    assert (
        "forked from base at\xa0step\xa020" in front.page.locator(".runs-table tbody tr").nth(3).inner_text()
    )
    assert front.page.locator(".runs-lines span").count() == 0
    front.sort("Loss")
    assert front.names() == ["run-9", "early", "base", "late", "run-10", "other"]
    assert front.aria_sort("Loss") == "descending"
    front.sort("Loss")
    assert front.names()[0] == "other"
    assert front.aria_sort("Loss") == "none"
    front.sort("Run")
    assert front.names() == ["base", "early", "late", "other", "run-9", "run-10"]
    front.sort("Step")
    assert front.names()[0] == "base"
    front.sort("Started")
    assert front.names()[0] == "other"
    front.sort("State")
    assert front.names()[:2] == ["early", "other"]
    front.deliver({"type": "sparklines", "runs": [["late", [9.0, None, 1.0]], ["base", [9.0, 8.0]]]})
    front.sort("Curve")
    assert front.names()[:2] == ["late", "base"]
    assert front.page.get_by_role("img", name="from 9 to 1").locator("polyline").count() == 2
    front.page.get_by_role("button", name="Family tree").click()
    assert front.names() == ["other", "run-9", "base", "early", "run-10", "late"]


def test_sorting_by_keyboard_keeps_the_focus(front):
    front.give(*FAMILY)
    front.page.get_by_role("button", name="Loss", exact=True).focus()
    front.page.keyboard.press("Enter")
    assert front.aria_sort("Loss") == "ascending"
    box = front.page.get_by_role("checkbox", name="Compare late")
    box.focus()
    front.give(row("late", loss=9.0, parent=fork("base", 80)), whole=False, seq=2)
    assert front.names()[-2:] == ["late", "other"]
    assert box.evaluate("node => node === document.activeElement")
    front.give(row("late", loss=0.5, parent=fork("base", 80)), whole=False, seq=3)
    assert front.names()[0] == "late"
    assert box.evaluate("node => node === document.activeElement")
    front.page.keyboard.press("Space")
    assert box.is_checked()


def test_filter_by_name_and_state(front):
    front.give(*FAMILY)
    front.page.get_by_role("searchbox").fill("RUNNING")
    assert front.names() == ["early"]
    assert front.page.get_by_role("status").first.inner_text().endswith("; 1 shown")
    front.page.get_by_role("searchbox").fill("base finished")
    assert front.names() == ["base", "late"]
    front.page.get_by_role("searchbox").fill("nothing")
    assert front.names() == []
    front.page.get_by_role("searchbox").fill("")
    assert len(front.names()) == 6


def test_updates_change_rows_and_a_gap_asks_for_all(front):
    front.give(row("a"), row("b"))
    front.give(row("a", step=41, state="running"), whole=False, seq=2)
    assert "41 / 100" in front.page.locator("tbody tr").filter(has_text="running").inner_text()
    front.give(whole=False, seq=3, gone=["b"])
    assert front.names() == ["a"]
    front.take_sent()
    front.give(row("c"), whole=False, seq=5)
    assert [message["type"] for message in front.take_sent()] == ["hello"]
    front.give(row("a"), row("c"), seq=5)
    assert sorted(front.names()) == ["a", "c"]


def test_the_command_that_opens_a_run(front, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    front.give(row("a", open="nb.attach('/tmp/<b>x</b>')"))
    button = front.page.get_by_role("button", name="Open a")
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    opened = front.page.get_by_role("button", name="Close a", exact=True)  # named as it is labelled
    assert opened.get_attribute("aria-expanded") == "true"
    assert front.page.locator(".runs-command code").inner_text() == "nb.attach('/tmp/<b>x</b>')"
    front.page.get_by_role("button", name="Copy").click()
    # about:blank is no secure place: the text is copied the old way.
    front.page.get_by_role("button", name="Copied").wait_for()
    front.page.get_by_role("searchbox").focus()
    front.page.keyboard.press("Control+v")
    assert front.page.get_by_role("searchbox").input_value() == "nb.attach('/tmp/<b>x</b>')"


def test_two_hundred_runs_are_quick(front):
    rows = [row(f"run-{i}", at=i + 1.0, parent=fork(f"run-{i - 1}") if i % 4 else None) for i in range(200)]
    began = time.monotonic()
    front.give(*rows)
    first = time.monotonic() - began
    began = time.monotonic()
    for seq in range(2, 12):
        front.give(*(row(f"run-{i}", at=i + 1.0, step=40 + seq) for i in range(5)), whole=False, seq=seq)
    later = (time.monotonic() - began) / 10
    assert len(front.names()) == 200
    print(f"200 rows {first:.3f} s, an update of 5 {later:.3f} s")
    # Measured on two slow shared cores: 0.15 and 0.03 s, half of it Playwright's. The limits are for work that grows
    # with the square of the rows, on a machine that does much else.
    assert first < 15
    assert later < 3


def test_at_most_twelve_are_picked(front):
    front.give(*(row(f"run-{i}") for i in range(14)))
    boxes = front.page.get_by_role("checkbox", name=re.compile("Compare run"))
    for place in range(12):
        boxes.nth(place).check()
    assert boxes.nth(12).is_disabled()
    asked = front.take_sent()
    assert asked[0]["runs"] == []
    assert len(asked[-1]["runs"]) == 12
    front.page.get_by_role("button", name="Clear 12 picked").click()
    assert front.take_sent()[-1]["runs"] == []
    assert boxes.nth(12).is_enabled()


def test_hostile_text_is_only_text(front):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202egnp"
    front.give(
        row(evil, state="running", reason=evil, parent=fork(evil), open=evil),
        row("__proto__", state=evil, parent=fork("constructor")),
        unreadable=[[evil, evil]],
    )
    front.deliver({"type": "sparklines", "runs": [["__proto__", [2.0, 1.0]]]})
    front.page.get_by_role("button", name="Open __proto__").click()
    front.page.get_by_role("checkbox", name="Compare __proto__").check()
    front.page.locator(".runs-pick input").last.check()
    names = front.take_sent()[-1]["runs"]
    assert set(names) == {evil, "__proto__"}
    front.deliver(
        {
            "type": "comparison",
            "to": front.viewer,
            "runs": names,
            "results": [{"label": "state", "values": [evil, evil], "best": None}],
            "settings": [{"name": evil, "values": [evil, evil], "differs": True}],
            "num_settings": 1,
            "samples": [{"step": 1, "prompt": evil, "text": evil}, None],
        }
    )
    front.deliver({"type": "problem", "text": evil})
    front.page.wait_for_timeout(200)
    assert front.page.locator("#el :is(img, script)").count() == 0
    text = front.page.locator("#el").inner_text()
    assert "\u202e" not in text
    assert text.count("<img src=x") >= 8


# With the real panel behind it


class Joined:
    """A page and a panel that talk to each other, as through a kernel."""

    def __init__(self, page, folder):
        self.panel = RunsPanel(list_runs(folder))
        self.queue = []
        self.panel.send = lambda content, buffers=None: self.queue.append((content, buffers or []))
        self.front = Front(page)
        self.pass_on(self.front.sent)

    def pass_on(self, sent):
        for message in sent:
            self.panel._on_message(None, message, [])

    def pump(self, until, timeout=15):
        deadline = time.monotonic() + timeout
        while not until():
            assert time.monotonic() < deadline, "it did not come"
            self.pass_on(self.front.take_sent())
            while self.queue:
                self.front.deliver(*self.queue.pop(0))
            time.sleep(0.02)


@pytest.fixture
def joined(page, tmp_path):
    grown(tmp_path, "base", steps=400)
    grown(
        tmp_path,
        "warmer",
        steps=300,
        config={"lr": 0.2, "steps": 100},
        parent={"name": "base", "step": 100},
        loss=lambda step: 4 - step / 150,
    )
    path = grown(tmp_path, "cooler", steps=200, end="")
    with EventWriter(path) as writer:
        writer.write("sample", 200, prompt="def add", text="(a, b): return a")
    joined = Joined(page, tmp_path)
    yield joined
    joined.panel.close()
    assert not joined.front.errors


def test_runs_are_compared(joined, tmp_path):
    front, page = joined.front, joined.front.page
    joined.pump(lambda: page.locator(".runs-spark").count() == 3)
    assert front.names() == ["cooler", "base", "warmer"]
    assert page.get_by_text("Pick two or more runs").is_visible()
    page.get_by_role("checkbox", name="Compare base").check()
    assert not page.locator(".runs-comparison").is_visible()
    page.get_by_role("checkbox", name="Compare warmer").check()
    chart = page.get_by_role(
        "application", name=re.compile("Training loss of the compared.*warmer 2 at step 300")
    )
    joined.pump(lambda: page.get_by_role("heading", name="2 runs compared").count() == 1)
    page.get_by_label("smoothing").fill("0")
    joined.pump(lambda: chart.count() == 1)
    held_out = page.get_by_role(
        "application", name=re.compile("Held-out.*base -1 at step 400; warmer 0 at step 300")
    )
    assert held_out.count() == 1
    settings = page.get_by_role("region", name="Settings")
    assert settings.get_by_role("rowheader").all_inner_texts() == ["lr differs"]
    page.get_by_label("only differences").uncheck()
    assert "steps" in settings.get_by_role("rowheader").all_inner_texts()
    assert "No sample" not in page.locator(".runs-comparison").inner_text()
    # Over tokens and time; held-out points are placed between the steps.
    page.get_by_label("over").select_option("tokens")
    page.get_by_role("application", name=re.compile("Held-out.*at tokens 25,600")).wait_for()
    page.get_by_label("over").select_option("seconds")
    page.get_by_role("application", name=re.compile("Held-out.*at trained for 50 s")).wait_for()
    page.get_by_label("log scale").check()
    # A third, which goes on.
    page.get_by_role("checkbox", name="Compare cooler").check()
    joined.pump(lambda: page.get_by_role("heading", name="3 runs compared").count() == 1)
    assert "(a, b): return a" in page.locator(".runs-samples").inner_text()
    with EventWriter(tmp_path / "cooler") as writer:
        write_steps(writer, 201, 240)
    newer = page.get_by_role("application", name=re.compile("Training loss.*cooler 2.6 at trained for 30 s"))
    joined.pump(lambda: newer.count() == 1)
    page.get_by_role("button", name="Clear 3 picked").click()
    assert not page.locator(".runs-comparison").is_visible()


def test_zooming_one_chart_zooms_the_other(joined):
    page = joined.front.page
    joined.pump(lambda: len(joined.front.names()) == 3)
    for name in ("base", "warmer"):
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    charts = page.get_by_role("application")
    joined.pump(
        lambda: page.get_by_role("application", name=re.compile("Held-out.*at step.*at step")).count() == 1
    )
    page.wait_for_timeout(100)
    before = charts.nth(1).screenshot()
    charts.nth(0).focus()
    page.keyboard.press("+")
    page.wait_for_timeout(200)
    assert charts.nth(1).screenshot() != before


def test_a_narrow_window_scrolls_the_table_in_its_own_box(joined):
    page = joined.front.page
    page.set_viewport_size({"width": 320, "height": 800})
    joined.pump(lambda: page.locator(".runs-spark").count() == 3)
    for name in ("base", "warmer", "cooler"):
        page.get_by_role("checkbox", name=f"Compare {name}").check()
    joined.pump(lambda: page.get_by_role("heading", name="3 runs compared").count() == 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.locator(".runs-box").evaluate("box => box.scrollWidth > box.clientWidth")
