"""Rules in the loop: they act at the step that fulfils their condition, and are recorded and replayed as actions."""

from __future__ import annotations

import contextlib
import shutil
import time

import pytest

import nbllm as nb
from nbllm.core.errors import RefusedError, RunError, UserError
from nbllm.objectives import CausalLM
from nbllm.runs.commands import send
from nbllm.runs.conditions import Condition
from nbllm.runs.rules import Rule, pause, rewind, sample, save, scale, set as set_to, stop
from nbllm.training.step import Stepper

CONSTANT = {"schedule": "constant", "warmup_steps": 0, "validation_interval": 0, "sample_interval": 0}
HOT = Rule(name="hot", when="step >= 6 and lr > 1e-3", do=[rewind(), scale(lr=0.1)])


@pytest.fixture
def start(lm, store, config, tmp_path):
    """Start a run in a thread; whatever happens, it is ended with the test."""
    started = []

    def start(name="run", **changes):
        run = nb.train(lm, store, folder=tmp_path, name=name, **{**config, **CONSTANT, **changes})
        started.append(run)
        return run

    yield start
    for run in started:
        with contextlib.suppress(RunError):
            run.stop()


@pytest.fixture
def spoil(monkeypatch):
    """Multiply the loss of one step, as long as the learning rate is above 1e-3."""

    def spoil(at, factor):
        take, loss = Stepper.step, CausalLM.loss
        factors = [1.0]

        def step(self, state):
            factors[0] = factor if state.step == at - 1 and state.values["lr"] > 1e-3 else 1.0
            return take(self, state)

        def spoiled(self, network, batch):
            total, count = loss(self, network, batch)
            return total * factors[0], count

        monkeypatch.setattr(Stepper, "step", step)
        monkeypatch.setattr(CausalLM, "loss", spoiled)

    return spoil


def actions(run):
    return [
        (a.step, a.action, a.args, a.outcome) for a in run.timeline.actions if a.actor.startswith("rule:")
    ]


def digest(run):
    return run.events("end")[-1]["digest"]


def test_a_rule_goes_back_and_lowers_the_rate_and_a_replay_agrees(start):
    run = start(rules=[HOT]).wait(progress=False)
    assert run.state == "finished"
    (back, lower) = actions(run)
    assert back[:2] == (6, "rewind")
    assert back[2]["to"] == 4
    assert lower[:3] == (4, "set", {"lr": pytest.approx(3e-4)})
    steps, rates = run.history("lr")
    assert list(steps) == list(range(1, 13))
    assert list(rates) == pytest.approx([3e-3] * 4 + [3e-4] * 8)
    assert run.rules["hot"].to_card() == {
        "name": "hot",
        "when": HOT.when,
        "do": "rewind, then lr times 0.1",
        "on": True,
        "fired": 1,
        "last_step": 6,
    }
    (event, _) = [e for e in run.events("action") if e["actor"] == "rule:hot"]
    assert event["reason"] == "step >= 6 and lr > 1e-3 (lr is 0.003)"
    result = nb.replay(run, progress=False)
    assert result.identical, result
    assert list(result.run.rules) == []
    assert [(a.step, a.action, a.args) for a in result.run.timeline.state_actions] == [lower[:3]]


def test_a_rule_that_meets_the_same_again_after_each_rewind_stops_at_its_limit(start):
    run = start(rules=[Rule(name="again", when="step == 6", do=rewind(), cooldown=0, limit=3)])
    run.wait(progress=False)
    assert run.state == "finished"
    assert [a[:2] for a in actions(run)] == [(6, "rewind")] * 3
    rule = run.rules["again"]
    assert (rule.fired, rule.is_on) == (3, False)
    assert [w["text"] for w in run.events("warning")] == [
        "the rule 'again' has acted 3 times and is off now; its limit is 3"
    ]
    assert nb.replay(run, progress=False).identical


def test_cooldown_counts_from_where_the_rewind_went_back_to(start):
    run = start(rules=[Rule(name="rest", when="step >= 6", do=rewind(2), cooldown=5, limit=2)])
    run.wait(progress=False)
    assert [(a[0], a[2]["to"]) for a in actions(run)] == [(6, 4), (10, 8)]


def test_what_rules_look_at_is_cut_where_a_rewind_goes_back_to(start):
    """The loss has six values at step 6, and after a rewind to step 4 again only at step 6."""
    run = start(rules=[Rule(name="six", when="mean(loss, 6) > 0", do=rewind(1), cooldown=0, limit=3)])
    run.wait(progress=False)
    assert [a[0] for a in actions(run)] == [6, 6, 6]


def test_evaluations_that_a_rewind_undid_are_forgotten(start, held_out):
    """The evaluation of step 6 is forgotten after a rewind to step 4."""
    rules = [
        Rule(name="back", when="evaluation.loss > 0", do=rewind(), limit=1),
        Rule(name="seen", when="loss > 0 and evaluation.loss > 0 and step == 5", do=save()),
    ]
    run = start(validation=held_out, validation_interval=6, rules=rules).wait(progress=False)
    assert [(a[0], a[1]) for a in actions(run)] == [(6, "rewind")]


def test_a_value_is_looked_at_once(start, held_out):
    rule = Rule(name="each", when="evaluation.loss > 0", do=scale(lr=0.5), cooldown=0)
    run = start(validation=held_out, validation_interval=6, rules=[rule]).wait(progress=False)
    assert [a[0] for a in actions(run)] == [6, 12]


def test_the_weights_that_gave_the_number_are_not_trusted(start):
    """The loss of step 5 is that of the weights after 4 steps, so the checkpoint of step 4 is passed over."""
    run = start(rules=[Rule(name="back", when="loss > 0 and step == 5", do=rewind(), limit=1)])
    run.wait(progress=False)
    assert [(a[0], a[2]["to"]) for a in actions(run)] == [(5, 0)]


def test_a_spike_is_left_behind_from_before_its_window(start, spoil):
    """The median over four losses at step 11 begins with the weights of step 7: that of step 8 is not trusted."""
    spoil(11, 3.0)
    run = start(rules=[nb.rules.spike(2, window=4)]).wait(progress=False)
    assert [(a[0], a[1]) for a in actions(run)] == [(11, "rewind"), (4, "set")] * 2
    steps, losses = run.history("loss")
    assert list(steps) == list(range(1, 13))
    assert max(losses) < 7
    assert nb.replay(run, progress=False).identical


def test_nan_is_acted_on_before_the_run_ends_by_it(start, spoil):
    spoil(6, float("nan"))
    run = start(rules=[nb.rules.nan()], max_bad_steps=1).wait(progress=False)
    assert run.state == "finished"
    assert [(a[0], a[1]) for a in actions(run)] == [(6, "rewind"), (4, "set")] * 2
    assert run.rules["nan"].fired == 2
    assert list(run.history("lr")[1])[4:] == pytest.approx([7.5e-4] * 8)
    assert [e["loss"] for e in run.events("step") if e["step"] == 6][:2] == [None, None]
    assert nb.replay(run, progress=False).identical
    with pytest.raises(RunError, match="not finite"):
        start("unruled", max_bad_steps=1).wait(progress=False)


def test_a_run_taken_up_from_an_older_checkpoint_repeats_what_its_rules_did_and_no_more(start):
    lower = Rule(name="lower", when="step == 6", do=scale(lr=0.5), cooldown=0)
    whole = start("whole", rules=[lower]).wait(progress=False)
    run = start(rules=[lower, Rule(name="halt", when="step == 7", do=stop())])
    run.wait(progress=False)
    assert (run.state, run.step) == ("stopped", 7)
    assert run.reason == "rule:halt: step == 7"
    shutil.rmtree(run.checkpoints[-1].path)  # as if it were damaged: the run falls back to step 4
    nb.attach(run.path).resume()
    run.wait(progress=False)
    assert (run.state, run.events("start")[-1]["from_step"]) == ("finished", 4)
    assert [(r.name, r.fired) for r in run.rules] == [("lower", 1), ("halt", 1)]
    assert digest(run) != digest(start("plain").wait(progress=False))
    assert nb.replay(run, progress=False).identical
    assert list(run.history("lr")[1]) == list(whole.history("lr")[1])


def test_what_rules_remember_is_restored(start):
    """The mean over ten losses is known at step 10, though the second session has seen only three of them."""
    rules = [
        Rule(name="halt", when="step == 7", do=stop()),
        Rule(name="ten", when="mean(loss, 10) > 0", do=save(), limit=1),
    ]
    run = start(rules=rules).wait(progress=False)
    nb.attach(run.path).resume()
    run.wait(progress=False)
    assert actions(run)[-1][:2] == (10, "save")


def test_a_refused_action_is_recorded_and_the_rest_goes_on(start):
    asked = [set_to(lr=7), scale(speed=2), nb.rules.evaluate(), nb.rules.freeze("*"), save()]
    run = start(rules=[Rule(name="odd", when="step == 3", do=asked)]).wait(progress=False)
    assert run.state == "finished"
    done = [a for a in run.timeline.actions if a.actor == "rule:odd"]
    assert [a.outcome for a in done] == ["refused"] * 4 + ["applied"]
    reasons = ["at most 1", "no setting 'speed'", "no validation text", "nothing would be left", ""]
    for action, reason in zip(done, reasons, strict=True):
        assert reason in action.reason
    assert run.rules["odd"].fired == 1
    assert 3 in [c.step for c in run.checkpoints]


def test_a_rule_that_cannot_be_computed_is_switched_off_and_the_run_goes_on(start, monkeypatch):
    holds = Condition.holds

    def broken(self, *args):
        if "lr" in self.metrics:
            raise ZeroDivisionError("oh")
        return holds(self, *args)

    monkeypatch.setattr(Condition, "holds", broken)
    run = start(rules=[HOT, Rule(name="fine", when="step == 5", do=save())]).wait(progress=False)
    assert run.state == "finished"
    assert not run.rules["hot"].is_on
    assert run.rules["fine"].fired == 1
    (off,) = [a for a in run.timeline.actions if a.action == "rule"]
    assert off.reason == "step >= 6 and lr > 1e-3 cannot be computed: oh"


def test_a_rule_pauses_at_its_step_and_a_person_goes_on(start):
    run = start(steps=100_000)
    outcome = run.rule("look", when="step > 5", do=[sample("The"), pause()], limit=1)
    assert repr(outcome).startswith("rule look set applied at step ")
    while run.state != "paused":
        assert run.is_live
        time.sleep(0.01)
    assert actions(run)[-1][0] == run.step == run.rules["look"].last_step
    assert [e["actor"] for e in run.events("sample")] == ["rule:look"]
    run.resume()
    run.wait(step=run.step + 3, progress=False)
    assert (run.state, run.rules["look"].is_on) == ("running", False)


def test_of_rules_due_at_the_same_step_none_acts_after_another_has_rewound(start):
    rules = [
        Rule(name="first", when="step == 6", do=rewind(), limit=1),
        Rule(name="second", when="step == 6", do=scale(lr=0.5), limit=1),
    ]
    run = start(rules=rules).wait(progress=False)
    assert [(a[0], a[1]) for a in actions(run)] == [(6, "rewind"), (6, "set")]
    assert list(run.history("lr")[1]) == pytest.approx([3e-3] * 6 + [1.5e-3] * 6)


def test_two_things_at_one_step_are_done_in_order(start):
    run = start(rules=[Rule(name="both", when="step == 6", do=[scale(lr=0.5), rewind()], limit=1)])
    run.wait(progress=False)
    assert list(run.history("lr")[1]) == pytest.approx([3e-3] * 12)  # the rewind has undone what was set
    assert nb.replay(run, progress=False).identical


def test_plateau_and_no_progress_follow_the_evaluations(start, held_out, monkeypatch):
    from nbllm.training.validation import Validation

    losses = iter([5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4])
    monkeypatch.setattr(
        Validation, "measure", lambda *_: {"loss": float(next(losses)), "bits_per_byte": 1.0, "tokens": 1}
    )
    rules = [nb.rules.plateau(patience=2), nb.rules.no_progress(patience=5)]
    run = start(validation=held_out, validation_interval=1, rules=rules).wait(progress=False)
    assert [(a[0], a[1]) for a in actions(run)] == [(4, "set"), (6, "set"), (7, "stop")]
    assert run.state == "stopped"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [nb.rules.plateau()],
            "'plateau' looks at evaluation.loss, but this run was given no validation text",
        ),
        ([Rule(name="typo", when="los > 3", do=pause())], "looks at 'los', which this run does not report"),
        ("spike", "list of rules"),
        ([{"name": "x", "when": "loss >", "do": []}], "something to do"),
    ],
)
def test_rules_that_could_never_act_are_refused_at_the_start(start, tmp_path, rules, message):
    with pytest.raises(UserError, match=message):
        start(rules=rules)
    assert list(tmp_path.iterdir()) == []


def test_what_rules_can_look_at_is_what_the_loop_reports(start, held_out):
    run = start(validation=held_out, validation_interval=6).wait(progress=False)
    from nbllm.training.metrics import reported_metrics

    assert set(run.timeline.metrics) == reported_metrics(CausalLM, evaluates=True)
    assert "evaluate" not in run.cannot


def test_rules_are_set_switched_and_refused_while_a_run_goes_on(start):
    run = start(steps=100_000)
    with pytest.raises(RefusedError, match="Did you mean 'loss'"):
        run.rule("typo", when="los > 3", do=pause())
    run.rule("slow", when="loss > 0", do=scale(lr=0.99), limit=10**6, cooldown=0)
    run.wait(step=run.step + 5, progress=False)
    outcome = run.rules["slow"].off()
    fired = run.rules["slow"].fired
    assert 0 < fired <= outcome.step
    run.wait(step=outcome.step + 3, progress=False)
    assert run.rules["slow"].fired == fired
    with pytest.raises(RefusedError, match="no rule 'slo'"):
        run.switch_rule("slo", True)
    run.rule("slow", when="loss < 0", do=pause())  # a rule that is replaced starts counting from zero
    assert (run.rules["slow"].fired, run.rules["slow"].do) == (0, "pause")


@pytest.mark.parametrize(
    ("action", "args"),
    [
        ("rule", {}),
        ("rule", {"name": "x"}),
        ("rule", {"name": "x", "self": 1}),
        ("rule", {"name": "x", "on": "yes"}),
        ("rule", {"name": ["x"], "on": True}),
        ("rule", {"name": "x", "on": True, "when": "loss > 1"}),
        ("rule", {"name": "x", "when": "loss > 1", "do": [{"action": "rule", "args": {}}]}),
        ("rule", {"name": "x", "when": "loss > 1", "do": [{"action": "rewind", "args": {"self": 1}}]}),
        ("rule", {"name": "x", "when": "(" * 499, "do": [{"action": "stop"}]}),
        ("rule", {"name": "a\u0000b", "when": "loss > 1", "do": [{"action": "stop"}]}),
        ("set", {"self": 1}),
    ],
)
def test_the_loop_refuses_what_is_no_rule(start, action, args):
    run = start(steps=100_000)
    command = send(run.path, action, args)
    while (answer := run.timeline.answer(command.id)) is None:
        assert run.is_live, run.reason
        time.sleep(0.005)
    assert answer.outcome == "refused"
    assert answer.reason
    assert list(run.rules) == []
    assert run.is_live


def test_a_fork_takes_the_rules_that_stand_and_counts_anew(start):
    run = start(rules=[HOT, Rule(name="done", when="step == 2", do=save(), limit=1)], steps=100_000)
    run.wait(step=3, progress=False)
    run.rule("new", when="step == 10", do=save())
    run.rules["hot"].off()
    run.stop()
    fork = run.fork("fork", step=0, steps=12).wait(progress=False)
    assert [(r.name, r.fired) for r in fork.rules] == [("done", 1), ("new", 1)]
    assert list(run.fork("bare", step=0, steps=2, rules=[]).wait(progress=False).rules) == []


def test_a_replay_takes_no_rules_and_a_fork_of_it_does(start):
    run = start().wait(progress=False)
    again = nb.replay(run, progress=False).run
    assert "replay" in again.cannot["rule"]
    assert "replay" in again.cannot["set"]
    fork = again.fork("fork", step=8, steps=100_000)
    try:
        assert fork.cannot == {"evaluate": "this run was given no validation text"}
        fork.rule(HOT)
        fork.set(lr=1e-3)
    finally:
        fork.stop()


def test_rules_act_in_a_process_too(start):
    run = start(rules=[HOT], where="process").wait(progress=False)
    assert [a[1] for a in actions(run)] == ["rewind", "set"]
    assert run.rules["hot"].fired == 1
