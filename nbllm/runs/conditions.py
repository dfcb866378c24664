"""The conditions of rules: a small part of Python's expressions, read by its parser and never run as code.

    loss > 1.5 * median(loss, 50) and step > 200

- A name is the newest value of a metric: `loss`, `lr`, `grad_norm`, `tokens_per_second`, `evaluation.loss`, any
  other that the loop reports; odd names in quotes: `"rewards/chosen"`. `step` is the number of steps done.
- `mean median min max std slope ema` of (metric, n) look at its n newest values; `last(metric, n)` is the n-th
  newest. `best(metric)` is the lowest of the newest 10,000, `since_best(metric)` how many came since, or since the
  rule last acted; `since_best(metric, 0.01)` does not count an improvement by less than 1 % as one.
- `isnan(number)`, `isfinite(number)`; `+ - * /`, `< <= > >= == !=`, `and or not`, parentheses.

Functions of several values leave out those that are not finite; the newest value is taken as it is, so a loss that
is not a number is caught by `not isfinite(loss)`, and by `not loss < 100`. While a metric has too few values, what
depends on it is neither true nor false, and the condition does not hold.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from nbllm.core.errors import UserError, nearest
from nbllm.runs.recent_metrics import FUNCTIONS, MetricFunction, RecentMetrics

MAX_TEXT = 500  # characters of a condition
MAX_DEPTH = 30  # of signs, negations and functions in each other
EVALUATION = "evaluation."
_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?=$|\W|and\b|or\b))
    |(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)|(?P<quoted>"[^"\\\n]{1,200}")|(?P<sign>[<>=!]=|[-+*/(),<>])""",
    re.VERBOSE | re.ASCII,
)


def _known(act: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function be `None` when one of its arguments is."""
    return lambda *found: None if None in found else act(*found)


def _or(*found: bool | None) -> bool | None:
    return True if True in found else None if None in found else False


def _and(*found: bool | None) -> bool | None:
    return False if False in found else None if None in found else True


def _divided(one: float, other: float) -> float:
    if other:
        return one / other
    return math.nan if not one or math.isnan(one) else math.copysign(math.inf, one)


@dataclasses.dataclass(frozen=True)
class _Operator:
    """An operator: how it is written, what it computes, whether it takes and gives truths instead of numbers."""

    sign: str
    act: Callable[..., Any]
    takes_truth: bool = False
    gives_truth: bool = False


_OPERATORS: dict[type[ast.AST], _Operator] = {
    ast.Or: _Operator("or", _or, True, True),
    ast.And: _Operator("and", _and, True, True),
    ast.Not: _Operator("not", _known(operator.not_), True, True),
    ast.Lt: _Operator("<", _known(operator.lt), False, True),
    ast.LtE: _Operator("<=", _known(operator.le), False, True),
    ast.Gt: _Operator(">", _known(operator.gt), False, True),
    ast.GtE: _Operator(">=", _known(operator.ge), False, True),
    ast.Eq: _Operator("==", _known(operator.eq), False, True),
    ast.NotEq: _Operator("!=", _known(operator.ne), False, True),
    ast.Add: _Operator("+", _known(operator.add)),
    ast.Sub: _Operator("-", _known(operator.sub)),
    ast.Mult: _Operator("*", _known(operator.mul)),
    ast.Div: _Operator("/", _known(_divided)),
    ast.USub: _Operator("-", _known(operator.neg)),
}
TESTS = {
    "isnan": _Operator("isnan", _known(math.isnan), False, True),
    "isfinite": _Operator("isfinite", _known(math.isfinite), False, True),
}


@dataclasses.dataclass(frozen=True)
class _Scope:
    """What a condition is evaluated in."""

    memory: RecentMetrics
    step: int
    acted_at: int  # where the rule last acted, on the current branch; -1 when it has not


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of a condition: a number or a truth, `None` while it is not known."""

    value: Callable[[_Scope], Any]
    is_truth: bool = False


class Condition:
    """A condition, ready to be evaluated.

    Args:
        text: What was written, in the language above.

    Raises:
        UserError: It is not a condition; the message says what is wrong, in which column, and how to fix it.
    """

    def __init__(self, text: str) -> None:
        reader = _Reader(text)
        self.text = reader.text
        self._value = reader.read().value
        self.metrics = frozenset(reader.metrics)
        self._begins = tuple(reader.begins)

    def holds(self, memory: RecentMetrics, step: int, acted_at: int = -1) -> bool:
        """Say whether it is fulfilled now.

        Args:
            memory: The metrics.
            step: Steps done.
            acted_at: Where the rule last acted, for `since_best`.
        """
        with np.errstate(all="ignore"):
            return self._value(_Scope(memory, step, acted_at)) is True

    def begins(self, memory: RecentMetrics, step: int) -> int:
        """Return the first step count of the weights that the condition now looks at: trouble began there or later.

        A step's metrics are those of the weights before it, an evaluation's those of the weights at its step.
        """
        found = [begin for find in self._begins if (begin := find(memory)) is not None]
        return min(found, default=step)


class _Reader:
    """Turns a condition into functions: Python parses it, and a node that is not known is refused."""

    def __init__(self, text: object) -> None:
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"A condition must be a text, not {str(text)[:40]!r}.", hint='For example: when="loss > 10".'
            )
        if len(text) > MAX_TEXT:
            raise UserError(f"The condition has {len(text)} characters; at most {MAX_TEXT} are taken.")
        self.text = text
        self.metrics: set[str] = set()
        self.begins: list[Callable[[RecentMetrics], int | None]] = []
        self._depth = 0
        self._columns: list[int] = []  # in `text`, from 1, of each character of `_source`
        self._source = self._checked_source()

    def read(self) -> _Part:
        try:
            tree = ast.parse(self._source, mode="eval").body
        except SyntaxError as error:
            # At the end Python names no column, or one behind the end.
            column = self._columns[min(error.offset or 10**9, len(self._columns)) - 1]
            at_end = not error.offset or error.offset >= len(self._columns)
            what = "it breaks off" if error.msg == "invalid syntax" and at_end else error.msg
            raise self._error(what, column) from None
        part = self._part(tree)
        if not part.is_truth:
            what, hint = "this is a number, not a condition", "Compare it with something: loss > 10."
            raise self._error(what, self._column(tree), hint)
        return part

    def _checked_source(self) -> str:
        """Return what Python is to parse: tokens of the language alone, a space after each, on one line."""
        source, place, depth = "", 0, 0
        text = self.text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self._error(f"{text[place]!r} has no meaning here", place + 1, _offer(text[place:]))
            depth += (match[0] == "(") - (match[0] == ")")
            if depth > MAX_DEPTH:
                raise self._error("it is nested too deeply", place + 1)
            piece = " " if match["space"] else match[0] + " " * (match["number"] is not None)
            if source or not match["space"]:  # Python takes a space at the beginning for an indentation
                source += piece
                self._columns += [min(place + 1 + i, match.end()) for i in range(len(piece))]
            place = match.end()
        self._columns.append(len(text) + 1)
        return source

    def _column(self, node: ast.expr) -> int:
        return self._columns[len(self._source.encode()[: node.col_offset].decode())]

    def _segment(self, node: ast.AST) -> str:
        return (ast.get_source_segment(self._source, node) or "").strip()

    def _error(self, what: str, column: int, hint: str | None = None) -> UserError:
        return UserError(
            f"The condition is wrong at column {column}: {what}.", where=repr(self.text), hint=hint
        )

    def _no_meaning(self, node: ast.expr) -> UserError:
        return self._error(f"{self._segment(node)!r} has no meaning here", self._column(node))

    def _part(self, node: ast.expr) -> _Part:
        """Return any part of a condition; what has no meaning in one is refused."""
        match node:
            case ast.BoolOp(op=op, values=operands):
                return self._operated(node, _OPERATORS.get(type(op)), operands)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._operated(node, _OPERATORS.get(type(op)), [left, right])
            case ast.Compare(comparators=[_, second, *_]):
                what = "comparisons do not chain"
                raise self._error(what, self._column(second), 'Join two with "and".')
            case ast.BinOp(left=left, op=op, right=right):
                return self._operated(node, _OPERATORS.get(type(op)), [left, right])
            case ast.UnaryOp(op=op, operand=operand):
                return self._operated(node, _OPERATORS.get(type(op)), [operand])
            case ast.Call():
                return self._call(node)
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                number = float(self._segment(node))
                return _Part(lambda scope: number)
            case ast.Name(id="step"):
                return _Part(lambda scope: float(scope.step))
        metric = self._metric(node)
        if metric is None:
            raise self._no_meaning(node)
        self.begins.append(
            lambda memory: _weights_step(metric, memory[metric].newest_step) if metric in memory else None
        )
        return _Part(lambda scope: scope.memory[metric].newest)

    def _operated(self, node: ast.expr, operator: _Operator | None, operands: list[ast.expr]) -> _Part:
        """Return what an operator makes of other parts."""
        if operator is None:
            raise self._no_meaning(node)
        self._depth += len(operands) == 1
        if self._depth > MAX_DEPTH:
            raise self._error("it is nested too deeply", self._column(operands[0]))
        parts = []
        for operand in operands:
            parts.append(self._part(operand))
            if parts[-1].is_truth != operator.takes_truth:
                kind = "a comparison, not a number" if operator.takes_truth else "a number, not a comparison"
                raise self._error(f"{operator.sign!r} takes {kind}", self._column(operand))
        self._depth -= len(operands) == 1
        return _Part(lambda scope: operator.act(*[part.value(scope) for part in parts]), operator.gives_truth)

    def _metric(self, node: ast.expr) -> str | None:
        """Return the metric that a name, with dots or in quotes, stands for."""
        written = self._segment(node)
        match = _TOKEN.fullmatch(written)
        name: str | None = None
        if match is not None and isinstance(node, ast.Constant) and match["quoted"]:
            name = written[1:-1]
        elif match is not None and isinstance(node, (ast.Name, ast.Attribute)):
            name = match["name"]
        if name is not None:
            self.metrics.add(name)
        return name

    def _call(self, node: ast.Call) -> _Part:
        name, column = self._segment(node.func), self._column(node)
        if name in TESTS and len(node.args) == 1:
            return self._operated(node, TESTS[name], node.args)
        if name not in FUNCTIONS:
            known = (*FUNCTIONS, *TESTS)
            what = f"{name} takes a number" if name in TESTS else f"there is no function {name!r}"
            raise self._error(what, column, nearest(name, known))
        function, (first, *others) = FUNCTIONS[name], node.args or [node]
        metric = None if self._segment(first) == "step" else self._metric(first)
        if metric is None:
            what, hint = f"{name} needs the name of a metric first", f"For example: {name}(loss, 50)."
            raise self._error(what, self._column(first), hint)
        if len(others) > (function.high > 0) or (function.is_count and not others):
            more = " and a number of values" if function.is_count else ", and perhaps a share" * function.high
            raise self._error(f"{name} takes a metric{more}", column)
        number = self._number(name, function, others[0]) if others else 0

        def compute(memory: RecentMetrics, acted_at: int) -> tuple[float, int] | None:
            return function.compute(memory[metric], number, acted_at)

        def begin(memory: RecentMetrics) -> int | None:
            found = compute(memory, -1)
            return None if found is None else _weights_step(metric, found[1])

        self.begins.append(begin)
        return _Part(lambda scope: (compute(scope.memory, scope.acted_at) or (None,))[0])

    def _number(self, name: str, function: MetricFunction, node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int(number)) if function.is_count and not isinstance(number, bool):
                if function.low <= number <= function.high:
                    return number
            case ast.Constant(value=int() | float() as number) if not function.is_count:
                if function.low <= number < function.high:
                    return number
        count = f"needs a whole number of values from {function.low} to {function.high:,}"
        what = count if function.is_count else "takes a share from 0 to 1"
        raise self._error(f"{name} {what}", self._column(node))


def _offer(rest: str) -> str | None:
    for sign, instead in (("=", "=="), ("&", "and"), ("|", "or"), ("!", "not"), ("%", "*"), ("[", "(")):
        if rest.startswith(sign):
            return f"Did you mean {instead!r}?"
    return None


def _weights_step(metric: str, step: int) -> int:
    return step if metric.startswith(EVALUATION) else step - 1
