"""The language of conditions against Python itself, and against what is no condition."""

import math
import random

import numpy as np
import pytest

from nbllm.core.errors import UserError
from nbllm.runs.conditions import MAX_TEXT, Condition
from nbllm.runs.recent_metrics import RecentMetrics

LOSSES = [5.0, 4.0, 3.0, 3.5, 3.25, 6.0]  # at steps 1 to 6


@pytest.fixture
def memory():
    memory = RecentMetrics()
    for step, loss in enumerate(LOSSES, 1):
        memory.add("loss", step, loss)
        memory.add("lr", step, 0.1)
    memory.add("rewards/chosen", 6, 2.0)
    memory.add("evaluation.loss", 3, 4.5)
    memory.add("evaluation.loss", 6, 4.75)
    return memory


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("loss > 5", True),
        ("loss > 6", False),
        ("6 >= loss", True),
        ("loss == 6 and loss != 5 and loss <= 6 and not loss < 6", True),
        ("step == 6", True),
        ("loss > 1.5 * median(loss, 6)", True),
        ("loss > 2 * median(loss, 6)", False),
        ("mean(loss, 2) == (3.25 + 6) / 2", True),
        ("min(loss, 6) == 3 and max(loss, 3) == 6", True),
        ("last(loss, 1) == 6 and last(loss, 3) == 3.5", True),
        ("slope(loss, 3) > 1.2 and slope(loss, 3) < 1.3", True),  # (6 - 3.5) / 2
        ("std(loss, 2) == 1.375", True),
        ("ema(loss, 6) > mean(loss, 6)", True),
        ("best(loss) == 3 and since_best(loss) == 3", True),
        ("since_best(evaluation.loss) == 1", True),
        ("since_best(loss, 0.45) == 5", True),  # nothing is an improvement on the first by 45 %
        ('"rewards/chosen" == 2 and mean("rewards/chosen", 1) == 2', True),
        ("evaluation.loss > 4.7 and evaluation.loss < 4.8", True),
        ("isfinite(loss) and not isnan(loss / lr)", True),
        ("isnan(0 / (loss - 6))", True),
        ("loss / (loss - 6) > 1e300", True),  # infinite, as in NumPy, not an error
        ("-loss < -5 and - -loss > 5", True),
        ("2 + 3 * 4 == 14 and (2 + 3) * 4 == 20 and 8 / 4 / 2 == 1 and 1 - 2 - 3 == -4", True),
        ("1e-3 < lr and .5 > lr and 1. > lr", True),
        ("loss > 100 or loss > 5 and loss > 50", False),
        ("(loss > 100 or loss > 5) and step > 3", True),
        ("loss>5and step>3", True),
        ("  loss\t>\n5  ", True),
    ],
)
def test_conditions_hold_or_not(memory, text, holds):
    assert Condition(text).holds(memory, 6) is holds


@pytest.mark.parametrize(
    "text",
    [
        "grad_norm > 0",
        "grad_norm <= 0 or grad_norm > 0",
        "not grad_norm > 0",
        "mean(loss, 7) > 0",
        "not mean(loss, 7) > 0",
        "isnan(grad_norm)",
        "not isfinite(grad_norm)",
        "since_best(grad_norm) >= 0",
        "best(grad_norm) < 1",
        "loss > 5 and grad_norm > 0",
    ],
)
def test_what_depends_on_values_that_are_missing_does_not_hold(memory, text):
    assert not Condition(text).holds(memory, 6)


def test_what_is_decided_without_the_missing_value_holds(memory):
    assert Condition("loss > 5 or grad_norm > 0").holds(memory, 6)
    assert Condition("not (loss < 5 and grad_norm > 0)").holds(memory, 6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_seen_and_does_not_spoil_the_windows(memory, value):
    memory.add("loss", 7, value)
    assert Condition("not isfinite(loss)").holds(memory, 7)
    assert Condition("isnan(loss)").holds(memory, 7) == math.isnan(value)
    assert Condition("median(loss, 6) == 3.75 and last(loss, 1) == 6 and best(loss) == 3").holds(memory, 7)
    if math.isnan(value):
        assert Condition("not loss < 100").holds(memory, 7)
        assert not Condition("loss > 1 or loss <= 1 or loss == loss").holds(memory, 7)
    memory.add("loss", 8, 3.0)
    assert not Condition("not isfinite(loss)").holds(memory, 8)


def test_since_best_counts_from_where_the_rule_last_acted(memory):
    condition = Condition("since_best(loss) >= 2")
    assert condition.holds(memory, 6)
    assert condition.holds(memory, 6, acted_at=4)
    assert not condition.holds(memory, 6, acted_at=5)


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("loss > 5", 5),  # the loss of step 6 is that of the weights after 5 steps
        ("loss > median(loss, 3)", 3),
        ("loss > median(loss, 50)", 5),  # not known yet
        ("evaluation.loss > 4", 6),
        ("mean(evaluation.loss, 2) > 4", 3),
        ("since_best(loss) > 1", 3),  # the first after the best was at step 4
        ("step > 3", 6),
        ("grad_norm > 3", 6),
        ("loss > 5 or max(loss, 2) > 5", 4),
    ],
)
def test_trouble_begins_with_the_first_weights_looked_at(memory, text, begins):
    assert Condition(text).begins(memory, 6) == begins


def test_metrics_are_named(memory):
    condition = Condition('loss > 1 and mean(lr, 3) < best(evaluation.loss) and "a b" > step')
    assert condition.metrics == {"loss", "lr", "evaluation.loss", "a b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a text"),
        (None, "must be a text"),
        (b"loss > 1", "must be a text"),
        ("loss", "column 1: this is a number, not a condition"),
        ("3 + loss", "column 1: this is a number"),
        ("loss >", "column 7: it breaks off"),
        ("loss > > 1", "column 8: invalid syntax"),
        ("loss = 1", "column 6: '=' has no meaning here"),
        ("loss > 1 & lr > 1", "Did you mean 'and'"),
        ("loss > 1 2", "column 10: invalid syntax"),
        ("1 < loss < 2", "column 12: comparisons do not chain"),
        ("(loss > 1", r"column 1: '\(' was never closed"),
        ("loss > 1)", "column 9"),
        ("loss and lr", "'and' takes a comparison, not a number"),
        ("not loss", "'not' takes a comparison"),
        ("(loss > 1) + 1 > 1", r"'\+' takes a number, not a comparison"),
        ("isnan(loss > 1)", "'isnan' takes a number, not a comparison"),
        ("mediann(loss, 3) > 1", "no function 'mediann'"),
        ("median(loss) > 1", "median takes a metric and a number of values"),
        ("median(3, loss) > 1", "needs the name of a metric first"),
        ("median(step, 3) > 1", "needs the name of a metric first"),
        ("median(loss, 0) > 1", "whole number of values from 1 to 10,000"),
        ("slope(loss, 1) > 1", "from 2 to"),
        ("median(loss, 10001) > 1", "to 10,000"),
        ("median(loss, 1.5) > 1", "whole number"),
        ("median(loss, lr) > 1", "whole number"),
        ("since_best(loss, 2) > 1", "a share from 0 to 1"),
        ("since_best(loss, -1) > 1", "a share from 0 to 1"),
        ("loss > 'x'", "has no meaning"),
        ("__import__(os) == 1", "no function '__import__'"),
        ("loss.__class__() > 1", "no function 'loss.__class__'"),
        ("[x for x in loss] > 1", r"column 1: '\[' has no meaning"),
        ("lambda: 1", "':' has no meaning"),
        ("loss ** 9 > 1", r"'loss \*\* 9' has no meaning here"),
        ("loss if 1 else 2", "has no meaning here"),
        ("loss // 2 > 1", "has no meaning here"),
        ("loss << 2 > 1", "has no meaning here"),
        ("loss in lr", "has no meaning here"),
        ("loss is lr", "has no meaning here"),
        ("+loss > 1", "has no meaning here"),
        ("True", "has no meaning here"),
        ("loss > None", "has no meaning here"),
        ("loss > 1 if True else lr > 1", "has no meaning here"),
        ("(loss, lr) > 1", "has no meaning here"),
        ("await loss > 1", "has no meaning here"),
        ("max(*loss) > 1", "needs the name of a metric first"),
        ("max(loss, lr=2) > 1", "'=' has no meaning here"),
        ("(x := loss) > 1", "':' has no meaning here"),
        ('f"{loss}" > 1', "has no meaning here"),
        ('r"loss" > 1', "has no meaning here"),
        ('"a" "b" > 1', "has no meaning here"),
        ('"a\\x41" > 1', "has no meaning here"),
        ('""" > 1', "has no meaning here"),
        ("{1: 2} > 1", "has no meaning here"),
        ("loss[0] > 1", r"Did you mean '\('"),
        ("loss > 1 # so", "'#' has no meaning here"),
        ("loss > 0x10", "'0' has no meaning here"),
        ("loss > 1_000", "'1' has no meaning here"),
        ("loss > 1j", "'1' has no meaning here"),
        ("(1).real > 1", "has no meaning here"),
        ("mean(loss, 3)(loss, 3) > 1", "no function"),
        ("max(loss, True) > 1", "whole number"),
        ("lambda loss: 1", "':' has no meaning"),
        ("loss > 1; lr > 1", "';' has no meaning"),
        ("löss > 1", "'ö' has no meaning"),
        ("(" * 200 + "loss > 1" + ")" * 200, "nested too deeply"),
        ("not " * 100 + "loss > 1", "nested too deeply"),
        ("-" * 300 + "1 > 1", "nested too deeply"),
        ("isnan(" * 60 + "1", "nested too deeply"),
        ("loss > 1 or " * 100 + "loss > 1", f"at most {MAX_TEXT} are taken"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_reason(text, message):
    with pytest.raises(UserError, match=message):
        Condition(text)


@pytest.mark.parametrize("digits", [300, 450])
def test_numbers_of_any_length_are_numbers(memory, digits):
    assert Condition(f"loss < {'9' * digits}").holds(memory, 6)
    assert Condition(f"loss < 1e{'9' * 100}").holds(memory, 6)  # infinite


def test_the_longest_condition_is_quick_and_holds(memory):
    text = "loss > 1" + " and loss > 1" * ((MAX_TEXT - 8) // 13)
    assert Condition(text).holds(memory, 6)


def _expression(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(["loss", "lr", "step", str(rng.randint(0, 9)), f"{rng.random():.3f}"])
    left, right = _expression(rng, depth - 1), _expression(rng, depth - 1)
    return rng.choice(
        [f"{left} {rng.choice('+-*')} {right}", f"({left} {rng.choice('+-*')} {right})", f"-{left}"]
    )


def _truth(rng, depth):
    if depth == 0 or rng.random() < 0.3:
        sign = rng.choice(["<", "<=", ">", ">=", "==", "!="])
        return f"{_expression(rng, 3)} {sign} {_expression(rng, 3)}"
    if rng.random() < 0.2:
        return f"not ({_truth(rng, depth - 1)})"
    left, right = _truth(rng, depth - 1), _truth(rng, depth - 1)
    return rng.choice([f"{left} {w} {right}" for w in ("and", "or")] + [f"({left}) or {right}"])


def test_precedence_is_that_of_python(memory):
    rng = random.Random(0)
    tried = {True: 0, False: 0}
    while min(tried.values()) < 300:
        text = _truth(rng, 3)
        if len(text) > MAX_TEXT or text.count("(") > 12:
            continue
        expected = eval(text, {"loss": 6.0, "lr": 0.1, "step": 6.0})
        assert Condition(text).holds(memory, 6) == expected, text
        tried[expected] += 1


def test_noise_is_refused_and_never_anything_else(memory):
    rng = random.Random(1)
    pieces = [
        "loss",
        "(",
        ")",
        ",",
        "<",
        "=",
        "median",
        "1",
        "0",
        "and",
        "not",
        '"',
        " ",
        "-",
        ".",
        "e",
        "\0",
        "ß",
        "step",
    ]
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 14)))
        try:
            condition = Condition(text)
        except UserError:
            continue
        assert condition.holds(memory, 6) in (True, False)


def test_values_of_numpy_are_numbers():
    memory = RecentMetrics()
    memory.add("loss", 1, np.float64(3))
    assert Condition("loss > 2").holds(memory, 1)
