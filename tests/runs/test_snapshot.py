import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from nbllm.core.errors import RunError, UserError
from nbllm.core.html import page
from nbllm.core.report import Report, Text
from nbllm.runs import checkpoint, events
from nbllm.runs.compare import compare
from nbllm.runs.events import EventWriter
from nbllm.runs.listing import list_runs
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.step_profile import KINDS
from nbllm.runs.store import create
from tests.runs.profile_files import summary, write_profile

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[31m\u202e\ud800\x00"


def grown(folder, name="tour", steps=50, *, has_bits=True, **record):
    path = create(
        folder,
        name,
        {
            "steps": 100,
            "config": {"steps": 100, "lr": 0.1, **record.pop("config", {})},
            "loss_unit": "nats/token",
            **record,
        },
    )
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        for step in range(1, steps + 1):
            writer.write(
                "step",
                step,
                loss=8 / step + 2,
                lr=0.1,
                tokens=step * 10,
                tokens_per_second=99.0,
                seconds=step,
            )
            if step % 20 == 0:
                bits = {"bits_per_byte": 100 / step} if has_bits else {}
                writer.write("evaluation", step, loss=3.0, **bits)
        writer.write("sample", steps, prompt="The for ", text="statement", actor="person", seed=0)
        action = {"id": "1", "actor": "person", "outcome": "applied"}
        writer.write("action", steps, action="set", args={"lr": 0.01}, **action)
        writer.write(
            "action", steps, **{**action, "action": "set", "outcome": "refused", "reason": "Too fast."}
        )
    checkpoint.save(
        path, 40, lambda folder: (folder / "w").write_bytes(b"x" * 5000) and None, {"num_actions": 0}
    )
    return Run(path)


def well_formed(html):
    """Parse HTML that keeps to XML's rules, as ours does."""
    html = html.replace("&middot;", "").replace("&ndash;", "").replace("&hellip;", "")
    return ET.fromstring(html)


def text_of(run):
    return "".join(well_formed(run._repr_html_()).itertext())


@pytest.mark.parametrize("unit", [None, "", EVIL, 5, ["nats/token"]])
def test_a_loss_of_another_loop_has_no_unit(tmp_path, unit):
    run = grown(tmp_path, loss_unit=unit)
    assert run.summary.loss_unit == ""
    assert "2.160" in text_of(run)
    assert "nats" not in text_of(run)


def test_everything_is_shown(tmp_path):
    run = grown(tmp_path, parent={"name": "older", "step": 30})
    with TrainerLock(run.path):
        shown, html, said = text_of(run), run._repr_html_(), repr(run)
    for part in (
        "tour",
        "running",
        "step 50 of 100",
        "forked from older at 30",
        "2.160 nats/token",
        "2.500 bits/byte",
        "99 tokens/s",
        "Newest sample, step 50, asked by person",
        "The for statement",
        "lr=0.01",
        "refused: Too fast.",
        "1 checkpoint, 5.02 kB",
        "step-00000040",
        "50 s",
    ):
        assert part in shown, part
    assert "<svg" in html
    assert 'style="width:50.0%"' in html
    assert said == "Run 'tour': running, step 50 of 100, loss 2.160"


def test_an_empty_run_is_shown(path):
    shown = text_of(Run(path))
    assert "starting" in shown
    assert "No step has been taken yet" in shown
    assert repr(Run(path)) == "Run 'tour': starting, step 0 of 500"


@pytest.mark.parametrize("ended", ["failed", "lost"])
def test_what_went_wrong_is_shown(tmp_path, ended):
    path = create(tmp_path, "tour", {})
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **{**this_process(), "pid": 1 << 30})
        for step in range(5):
            writer.write("warning", step, text=f"The loss is not finite ({step}).")
        if ended == "failed":
            writer.write("end", 3, state="failed", reason="NaN in blocks.0")
        with open(writer.path, "ab") as file:
            file.write(b"garbage\n")
    shown = text_of(Run(path))
    assert ended in shown
    assert ("NaN in blocks.0" if ended == "failed" else "resume() goes on") in shown
    assert "2 earlier warnings" in shown
    assert "Step 4: The loss is not finite (4)." in shown
    assert "1 damaged line of events skipped" in shown


def test_hostile_text_is_shown_and_does_nothing(tmp_path):
    path = create(
        tmp_path, "tour", {"parent": {"name": EVIL, "step": EVIL}, "config": {EVIL: EVIL, "lr": EVIL}}
    )
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        writer.write("step", 1, loss=1.0)
        writer.write("sample", 1, prompt=EVIL, text=EVIL * 500, actor=EVIL)
        writer.write("warning", 1, text=EVIL)
        writer.write(
            "action", 1, id=EVIL, action="set", args={EVIL: EVIL}, actor=EVIL, outcome="applied", reason=EVIL
        )
        writer.write("action", 1, id="2", action=EVIL, args={}, actor=EVIL, outcome=EVIL, reason=EVIL)
        writer.write(
            "action", 1, action="freeze", args={"patterns": [EVIL]}, actor="person", outcome="refused"
        )
        writer.write("action", 1, action="sample", args={"prompt": EVIL}, actor="person", outcome="applied")
        writer.write("end", 1, state="failed", reason=EVIL)
    run = Run(path)
    other = grown(tmp_path, "other")
    for html in (run._repr_html_(), list_runs(tmp_path)._repr_html_(), compare([run, other])._repr_html_()):
        assert "<script" not in html
        assert "<img" not in html
        assert not re.search("[\x00\x1b\u202e\ud800]", html)
        html.encode()
        well_formed(html)
    repr(run), repr(list_runs(tmp_path)), repr(compare([run, other]))


def test_a_page_of_it_fetches_nothing(tmp_path):
    html = page("tour", grown(tmp_path)._repr_html_())
    assert not re.search(r"(src|href|url)\s*[=(]", html.replace("xmlns", ""))


def test_checkpoints_that_a_rewind_left_behind_are_marked(tmp_path):
    run = grown(tmp_path)
    with EventWriter(run.path) as writer:
        writer.write(
            "action",
            50,
            id="r",
            action="rewind",
            args={"to": 10, "keep": 0},
            actor="person",
            outcome="applied",
        )
    assert "superseded" in text_of(run)
    assert run.step == 10


def test_of_a_hundred_thousand_steps_each_is_read_once(tmp_path, monkeypatch):
    path = create(tmp_path, "long", {"steps": 100_000})
    line = (
        '{{"time":1764032000.5,"kind":"step","step":{0},"loss":3.2134567,"lr":0.000912345,"grad_norm":0.8712345,'
        '"tokens":204800,"tokens_per_second":4123.12,"memory":812345678,"seconds":{0}.25}}\n'
    )
    with open(path / "events" / "trainer-0001.jsonl", "w") as file:
        file.writelines(line.format(step) for step in range(1, 100_001))
    parsed, is_event = [], events._is_event
    monkeypatch.setattr(events, "_is_event", lambda event: parsed.append(1) or is_event(event))
    run = Run(path)
    steps, values = run.history()
    html = run._repr_html_()
    assert len(steps) == len(values) == 100_000
    assert len(html) < 200_000
    assert 100_000 <= len(parsed) < 100_100  # each line once
    parsed.clear()
    with open(path / "events" / "trainer-0001.jsonl", "a") as file:
        file.write(line.format(100_001))
    assert run.step == 100_001
    assert "100,001" in repr(list_runs(tmp_path))
    assert len(parsed) < 2000  # the new line, and what a table of runs reads of a long one


def test_comparing(tmp_path):
    first = grown(tmp_path, "first")
    second = grown(
        tmp_path,
        "second",
        steps=80,
        config={"lr": 0.2, "warmup_steps": 5},
        parent={"name": "first", "step": 40},
    )
    compared = compare([first, second.path])
    assert compared.names == ("first", "second")
    assert compared.differences() == {"lr": (0.1, 0.2), "warmup_steps": (None, 5)}
    assert compared.settings()["steps"] == (100, 100)
    results = {row[0]: row[1:] for row in compared.results()}
    assert results["steps"] == (50, 80)
    assert results["held-out bits/byte"] == (2.5, 1.25)
    assert results["forked from"] == (None, "first at 40")
    assert results["steered"] == ("lr=0.01 at 50", "lr=0.01 at 80")
    assert compared.curves()["second"][0][-1] == 80
    assert "first at 40" in repr(compared)
    shown = "".join(well_formed(compared._repr_html_()).itertext())
    for part in ("Settings that differ", "warmup_steps", "1 settings are the same", "held-out, bits/byte"):
        assert part in shown
    assert compare(first, second).names == ("first", "second")
    assert compare(list_runs(tmp_path)).names == ("second", "first")


def test_held_out_losses_are_drawn_where_a_run_has_no_bits_per_byte(tmp_path):
    """As a run that predicts masked tokens has none, beside one that predicts all."""
    compared = compare([grown(tmp_path, "causal"), grown(tmp_path, "masked", has_bits=False)])
    chart = [section for section in compared.report().sections if section.kind == "chart"][-1]
    assert chart.y_label == "held-out loss, nats/token"
    assert [list(line.y) for line in chart.lines] == [[3.0, 3.0]] * 2


def test_a_comparison_is_saved_and_stands_in_a_report(tmp_path):
    second = grown(tmp_path, "second", steps=80, config={"lr": 0.2}, parent={"name": "first", "step": 40})
    compared = compare([grown(tmp_path, "first"), second])
    report = Report("Mine").add(Text(text="An introduction.")).add(compared)
    assert [section.kind for section in report.sections] == [
        "text",
        "table",
        "chart",
        "chart",
        "table",
        "key-values",
    ]
    loss = report.sections[2]
    assert [line.name for line in loss.lines] == ["first", "second"] and loss.lines[1].x[-1] == 80
    for suffix in (".html", ".md", ".json"):
        text = compared.save(tmp_path / "new" / "folder" / f"compared{suffix}").read_text()
        for part in ("Comparison of first", "first at 40", "0.2", "held-out, bits/byte", "lr"):
            assert part in text
    loaded = Report.load(tmp_path / "new" / "folder" / "compared.json")
    assert loaded.sections == compared.report().sections
    with pytest.raises(UserError, match="cannot be saved as .txt"):
        compared.save(tmp_path / "compared.txt")
    empty = compare([Run(create(tmp_path, "empty", {})), second])
    assert str(empty.report()) and empty.report()._repr_html_()


def test_a_hostile_comparison_is_escaped(tmp_path):
    other = grown(tmp_path, "other", config={EVIL: EVIL})
    page_of_it = compare([grown(tmp_path, "first"), other]).report()._repr_html_()
    assert "<script" not in page_of_it and "&lt;script" in page_of_it


def test_comparing_runs_of_one_name_and_none_at_all(tmp_path):
    one, other = grown(tmp_path / "a"), grown(tmp_path / "b")
    assert compare([one, other]).names == ("a/tour", "b/tour")
    assert compare([one, one]).names == ("a/tour (1)", "a/tour (2)")
    with pytest.raises(RunError, match="no runs to compare"):
        compare([])
    with pytest.raises(RunError, match="There is no run here"):
        compare([tmp_path / "c"])
    shutil.rmtree(one.path)
    assert "lost" in repr(compare([one, other]))
    empty = Run(create(tmp_path, "empty", {}))
    assert "<svg" not in compare([empty])._repr_html_()


def test_comparing_shows_rules_in_words_as_they_are_now(tmp_path):
    rule = {"name": "spike", "when": "loss > 9", "do": [{"action": "stop", "args": {}}]}
    plain = grown(tmp_path, "plain", config={"lr": 0.1})
    ruled = grown(tmp_path, "ruled", config={"lr": 0.1, "rules": [rule]})
    compared = compare([plain, ruled])
    assert compared.differences() == {"rule spike": (None, "stop when loss > 9")}
    with EventWriter(ruled.path) as writer:
        args = {"name": "spike", "on": False}
        writer.write(
            "action", 50, id="1" * 16, action="rule", args=args, actor="person", outcome="applied", reason=""
        )
    assert compared.differences() == {"rule spike": (None, "stop when loss > 9 (off)")}


def test_the_newest_profile_is_shown_small(tmp_path):
    run = grown(tmp_path)
    assert "Profile" not in text_of(run)
    write_profile(run.path, 3, "broken")
    assert "Profile" not in text_of(run)
    many = {kind: [[k * 1e-6, k * 1e-6 + 5e-7] for k in range(20_000)] for kind in KINDS}
    write_profile(run.path, 30, summary(), summary(1, spans=many))
    shown = text_of(run)
    assert "Profile: 3 steps from step 30 on, 2 ranks" in shown and "of it exposed, %" in shown
    html = run._repr_html_()
    assert "rank 1</text>" in html and "<details>" in html
    assert html.count("<title>communication") <= 100
