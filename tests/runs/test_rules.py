"""Rules as data: what they may say, how they are folded out of events, and how they look."""

import json
import random

import pytest

from nbllm.core.errors import RefusedError, RunError, UserError
from nbllm.runs import rules
from nbllm.runs.events import EventWriter
from nbllm.runs.lock import TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.rulebook import RuleBook, check_rules, recorded_rules
from nbllm.runs.rules import Rule
from nbllm.runs.run import Run
from nbllm.runs.store import create
from nbllm.runs.timeline import Timeline

WHEN = "loss > 3"


def rule(name="hot", **fields):
    return Rule(**{"name": name, "when": WHEN, "do": rules.pause(), **fields})


def event(action, step, *, actor="person", outcome="applied", **fields):
    return {
        "time": 0.0,
        "kind": "action",
        "step": step,
        "action": action,
        "actor": actor,
        "outcome": outcome,
        **fields,
    }


def fired(step, firing, action="set", name="hot", outcome="applied", **args):
    return event(action, step, actor=f"rule:{name}", firing=firing, args=args, outcome=outcome)


# What a rule may say


def test_a_rule_survives_json():
    everything = rule(
        do=[
            rules.rewind(),
            rules.rewind(10),
            rules.set(lr=1e-3, clip=2),
            rules.scale(lr=0.5),
            rules.freeze("blocks.0.*", "embedding.*"),
            rules.unfreeze("embedding.*"),
            rules.sample("Once"),
            rules.save(),
            rules.evaluate(),
            rules.stop(),
        ],
        cooldown=7,
        limit=2,
    )
    again = Rule.from_dict(json.loads(json.dumps(everything.to_dict())))
    assert again == everything
    assert again.do_text == (
        "rewind, then rewind by 10 steps, then lr=0.001, clip=2, then lr times 0.5, then freeze"
        " blocks.0.*, embedding.*, then unfreeze embedding.*, then sample 'Once', then save, then evaluate, then stop"
    )


@pytest.mark.parametrize(
    ("made", "when", "do"),
    [
        (rules.spike(2, 20, lr=0.1), "loss > 2 * median(loss, 20)", "rewind, then lr times 0.1"),
        (rules.nan(), "not isfinite(loss) or not isfinite(grad_norm)", "rewind, then lr times 0.5"),
        (rules.plateau(patience=4), "since_best(evaluation.loss, 0.001) >= 4", "lr times 0.5"),
        (rules.plateau("a b/c"), 'since_best("a b/c", 0.001) >= 3', "lr times 0.5"),
        (rules.no_progress("loss", 9, 0), "since_best(loss, 0) >= 9", "stop"),
        (
            rules.reward_hacking(5, 8, 3),
            "mean(kl, 8) > 5 and slope(reward, 8) > 0",
            "kl_coefficient times 3",
        ),
        (rules.length_running_away(1.5, 4), "mean(length, 4) > 1.5 * best(length)", "pause"),
    ],
)
def test_rules_to_have(made, when, do):
    assert (made.when, made.do_text) == (when, do)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rule(when="loss >"), "column 7: it breaks off"),
        (lambda: rule(name=""), "not an actor"),
        (lambda: rule(name="x" * 81), "not an actor"),
        (lambda: rule(name="a\nb"), "not an actor"),
        (lambda: rule(name=3), "must be a text"),
        (lambda: rule(do=[]), "needs something to do"),
        (lambda: rule(do="pause"), "needs something to do"),
        (lambda: rule(do=["pause"]), "nothing to do"),
        (lambda: rule(do={"action": "resume"}), "cannot 'resume'"),
        (lambda: rule(do={"action": "rule", "args": {}}), "cannot 'rule'"),
        (lambda: rule(do={"action": ["x"]}), "cannot"),
        (lambda: rule(do={"action": "pause", "args": {"x": 1}}), "pause cannot take"),
        (lambda: rule(do={"action": "pause", "args": 3}), "pause cannot take"),
        (lambda: rule(do={"action": "pause", "more": 1}), "nothing to do"),
        (lambda: rule(do=[rules.pause()] * 11), "at most 10 things"),
        (lambda: rule(cooldown=-1), "at least 0"),
        (lambda: rule(limit=0), "at least 1"),
        (lambda: rule(limit=True), "at least 1"),
        (lambda: rule(limit=10**20), "at least 1"),
        (lambda: rules.rewind(0), "at least 1"),
        (lambda: rules.rewind(1.5), "whole number"),
        (lambda: rules.scale(), "needs settings with numbers"),
        (lambda: rules.scale(lr="half"), "needs settings with numbers"),
        (lambda: rules.set(lr=float("nan")), "needs settings with numbers"),
        (lambda: rules.freeze(), "one or more names"),
        (lambda: rules.freeze(3), "names of model parts"),
        (lambda: rules.sample(3), "must be a text"),
        (lambda: Rule.from_dict({"name": "x"}), "A rule needs when and do"),
        (lambda: Rule.from_dict({"name": "x", "when": WHEN, "do": rules.stop(), "colour": 1}), "colour"),
        (
            lambda: Rule.from_dict({"name": "x", "when": WHEN, "do": rules.stop(), "limit": "3"}),
            "whole number",
        ),
    ],
)
def test_what_is_no_rule_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("spike", "list of rules"),
        (3, "list of rules"),
        (rules.spike(), "list of rules"),
        (["spike"], "'spike' is not a rule"),
        ([rules.spike(), rules.spike()], "Two rules are called 'spike'"),
        ([rule(f"r{n}") for n in range(101)], "at most 100"),
    ],
)
def test_a_configuration_holds_a_list_of_rules(given, message):
    with pytest.raises(UserError, match=message):
        check_rules(given)


# What becomes of them


def test_a_rule_acts_as_often_as_its_limit_and_rests_between():
    book = Timeline(rules=[rule(cooldown=5, limit=2)])
    state = book.rules["hot"]
    assert state.may_act(1)
    book.extend([fired(10, 1, "rewind", to=8, keep=0), fired(8, 1, lr=0.1)])  # one firing, two things done
    assert (state.fired, state.last_step, state.left) == (1, 10, 1)
    assert [state.may_act(step) for step in (8, 9, 13, 14)] == [False, False, False, True]
    book.extend([fired(20, 2, outcome="refused")])
    assert (state.fired, state.last_step, state.on) == (2, 20, False)
    book.extend([event("rule", 25, args={"name": "hot", "on": True})])
    assert (state.on, state.left, state.fired) == (True, 2, 2)
    assert [state.may_act(step) for step in (25, 26)] == [False, True]


def test_rules_set_switched_and_replaced():
    timeline = Timeline(rules=[rule("a"), rule("b")])
    timeline.extend(
        [
            event("rule", 3, args={"name": "a", "on": False}),
            event("rule", 4, args=rule("c", when="loss > 7").to_dict()),
            event("rule", 5, args=rule("b", when="loss > 8").to_dict()),
            event("rule", 6, args=rule("d").to_dict(), outcome="refused"),
        ]
    )
    assert [(s.rule.name, s.rule.when, s.on) for s in timeline.rules] == [
        ("a", WHEN, False),
        ("b", "loss > 8", True),
        ("c", "loss > 7", True),
    ]
    assert [timeline.rules["c"].may_act(step) for step in (4, 5)] == [False, True]


def test_after_a_rewind_rules_look_at_the_steps_again():
    timeline = Timeline(rules=[rule(cooldown=0)])
    timeline.extend(
        [event("rule", 9, args=rule("late").to_dict()), event("rewind", 10, args={"to": 4, "keep": 0})]
    )
    assert [timeline.rules["late"].may_act(step) for step in (4, 5)] == [False, True]


def test_an_action_in_a_rules_name_that_the_loop_did_not_do_for_it_is_no_firing():
    timeline = Timeline([event("set", 3, actor="rule:hot", args={"lr": 1})], rules=[rule()])
    assert timeline.rules["hot"].fired == 0


def test_events_that_hold_anything_break_nothing():
    rng = random.Random(0)
    odd = [
        None,
        3,
        -1,
        1e300,
        "hot",
        "on",
        [],
        {},
        True,
        {"action": "pause"},
        ["pause"],
        rules.pause(),
        10**30,
    ]
    timeline = Timeline(rules=[rule()])
    for _ in range(2000):
        args = {
            rng.choice(["name", "on", "when", "do", "limit", "to", "x"]): rng.choice(odd) for _ in range(4)
        }
        args = rng.choice([args, {"name": "hot", **args}, rng.choice(odd)])
        timeline.extend(
            [
                event(
                    rng.choice(["rule", "rewind", "set"]),
                    3,
                    args=args,
                    firing=rng.choice(odd),
                    actor="rule:hot",
                )
            ]
        )
    assert "hot" in timeline.rules


def test_a_book_does_not_grow_without_end():
    timeline = Timeline([event("rule", 1, args=rule(f"r{n}").to_dict()) for n in range(300)])
    assert len(timeline.rules) == 100


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"config": 3},
        {"config": {"rules": "x"}},
        {"config": {"rules": [None, 3, {"name": "x"}, {"name": "x", "when": "(", "do": []}]}},
        {"config": {"rules": [rule().to_dict()]}, "replay": {"of": "x"}},
    ],
)
def test_records_without_rules_to_act(record):
    assert recorded_rules(record) == []


def test_a_rule_that_is_not_there_is_named():
    with pytest.raises(RunError, match="no rule 'hit'") as caught:
        RuleBook([rule()])["hit"]
    assert "Did you mean 'hot'?" in str(caught.value)


# The handle


@pytest.fixture
def ruled(tmp_path):
    """A run with three rules, one of them hostile, recorded at the start and in events."""
    nasty = rule('<img src=x onerror="alert(1)">', do=rules.sample("<script>\x1b[31m"))
    path = create(tmp_path, "run", {"config": {"rules": [rule().to_dict(), nasty.to_dict()]}})
    with EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        for entry in (fired(7, 1, lr=0.1), event("rule", 8, args=rules.spike().to_dict())):
            fields = {key: value for key, value in entry.items() if key not in ("time", "kind", "step")}
            writer.write("action", entry["step"], **fields)
        yield Run(path)


def test_a_runs_rules_can_be_seen(ruled):
    assert [r.name for r in ruled.rules][::2] == ["hot", "spike"]
    hot = ruled.rules["hot"]
    assert hot.to_card() == {
        "name": "hot",
        "when": WHEN,
        "do": "pause",
        "on": True,
        "fired": 1,
        "last_step": 7,
    }
    assert json.dumps([r.to_card() for r in ruled.rules])
    assert repr(hot) == "Rule 'hot': when loss > 3, pause (on; acted 1 time)"
    assert ruled.rules[0].name == "hot"
    assert len(ruled.rules[1:]) == 2
    lines = repr(ruled.rules).splitlines()
    assert lines[0].split() == ["rule", "when", "do", "on", "acted", "last", "at", "step"]
    assert lines[1].split() == ["hot", "loss", ">", "3", "pause", "on", "1", "time", "7"]


def test_what_rules_say_is_escaped(ruled):
    html = ruled.rules._repr_html_()
    assert "<img" not in html
    assert "<script>" not in html
    assert "&lt;img" in html
    assert "\x1b" not in html + repr(ruled.rules)


def test_a_missing_rule_is_named_and_none_is_said(ruled, tmp_path):
    with pytest.raises(RunError, match="no rule 'spik'") as caught:
        _ = ruled.rules["spik"]
    assert "Did you mean 'spike'?" in str(caught.value)
    bare = Run(create(tmp_path, "bare", {}))
    assert repr(bare.rules) == "No rules; run.rule(...) sets one."
    assert "run.rule" in bare.rules._repr_html_()
    with pytest.raises(RunError, match="no rule"):
        _ = bare.rules["x"]


def test_rules_are_set_and_switched_by_commands(run):
    outcome = run.rule("cool", when=WHEN, do=[rules.scale(lr=0.5), rules.save()], limit=1)
    assert repr(outcome).startswith("rule cool set applied at step ")
    run.rule(rules.plateau())
    assert [r.name for r in run.rules] == ["cool", "plateau"]
    assert run.rules["cool"].do == "lr times 0.5, then save"
    assert repr(run.rules["cool"].off()).startswith("rule cool off applied")
    assert [r.is_on for r in run.rules] == [False, True]
    run.rules["cool"].on()
    assert run.rules["cool"].is_on


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: run.rule("x"), "A rule needs when and do"),
        (lambda run: run.rule("x", when=WHEN), "A rule needs do"),
        (lambda run: run.rule(rules.nan(), when=WHEN), "A whole rule is given"),
        (lambda run: run.rule("x", when=WHEN, do=rules.pause(), often=3), "often"),
        (lambda run: run.rule("x", when="los >", do=rules.pause()), "breaks off"),
        (lambda run: run.rule(3, when=WHEN, do=rules.pause()), "must be a text"),
    ],
)
def test_what_is_no_rule_is_not_sent(run, ask, message):
    with pytest.raises(UserError, match=message):
        ask(run)
    assert run.events("action") == []


def test_a_run_that_takes_no_rules_says_so(tmp_path):
    path = create(tmp_path, "run", {"cannot": {"rule": "it is a replay"}})
    with TrainerLock(path), EventWriter(path) as writer:
        writer.write("start", 0, from_step=0, **this_process())
        with pytest.raises(RefusedError, match="it is a replay"):
            Run(path).rule(rules.nan())
