"""The conditions of rules: a small language, parsed here and never run as code.

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

import bisect
import dataclasses
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from nbllm.core.errors import UserError, nearest
from nbllm.runs.recent_metrics import MAX_WINDOW, WINDOWS, RecentMetrics

MAX_TEXT = 500  # characters of a condition
MAX_DEPTH = 30
EVALUATION = "evaluation."
_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)|"(?P<quoted>[^"]{1,200})"
    |(?P<sign><=|>=|==|!=|[-+*/(),<>]))""",
    re.VERBOSE | re.ASCII,
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
TESTS: dict[str, Callable[[float], bool]] = {"isnan": math.isnan, "isfinite": math.isfinite}
BESTS = ("best", "since_best")


@dataclasses.dataclass(frozen=True)
class _Scope:
    """What a condition is evaluated in."""

    memory: RecentMetrics
    step: int
    acted_at: int  # where the rule last acted, on the live line; -1 when it has not


@dataclasses.dataclass(frozen=True)
class _Node:
    """A part of a condition: a number or a truth, `None` while it is neither known."""

    is_truth: bool
    column: int
    value: Callable[[_Scope], Any]


class Condition:
    """A condition that was parsed.

    Args:
        text: What was written, in the language above.

    Raises:
        UserError: It is no condition; the message says what is wrong, in which column, and how to fix it.
    """

    def __init__(self, text: str) -> None:
        parser = _Parser(text)
        self.text = parser.text
        self._node = parser.parse()
        self.metrics = frozenset(parser.metrics)
        self._begins = tuple(parser.begins)

    def holds(self, memory: RecentMetrics, step: int, acted_at: int = -1) -> bool:
        """Say whether it is fulfilled now.

        Args:
            memory: The metrics.
            step: Steps done.
            acted_at: Where the rule last acted, for `since_best`.
        """
        with np.errstate(all="ignore"):
            return self._node.value(_Scope(memory, step, acted_at)) is True

    def begins(self, memory: RecentMetrics, step: int) -> int:
        """Return the first step count of the weights that the condition now looks at: trouble began there or later.

        A step's metrics are those of the weights before it, an evaluation's those of the weights at its step.
        """
        found = [begin for find in self._begins if (begin := find(memory)) is not None]
        return min(found, default=step)


class _Parser:
    """Recursive descent; one method for each level of the grammar."""

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
        self.depth = 0
        self.tokens = self._tokens()
        self.place = 0

    def parse(self) -> _Node:
        node = self._or()
        if self._kind != "end":
            raise self._error(f"{self._token!r} does not belong here", self._column)
        if not node.is_truth:
            raise self._error(
                "this is a number, not a condition", node.column, "Compare it with something: loss > 10."
            )
        return node

    # -- tokens -------------------------------------------------------------------------------------------------

    def _tokens(self) -> list[tuple[str, str, int]]:
        found, place = [], 0
        text = self.text.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                column = place + len(text[place:]) - len(text[place:].lstrip())
                raise self._error(f"{text[column]!r} has no meaning here", column + 1, _offer(text[column:]))
            kind = str(match.lastgroup)
            found.append((kind, match[kind], match.start(kind) + 1))
            place = match.end()
        return [*found, ("end", "", len(text) + 1)]

    @property
    def _kind(self) -> str:
        return self.tokens[self.place][0]

    @property
    def _token(self) -> str:
        return self.tokens[self.place][1]

    @property
    def _column(self) -> int:
        return self.tokens[self.place][2]

    def _take(self, *signs: str) -> str:
        """Take the next token if it is one of `signs` (signs, or words like `and`); else return ""."""
        if self._kind in ("sign", "name") and self._token in signs:
            self.place += 1
            return self.tokens[self.place - 1][1]
        return ""

    def _expect(self, sign: str, after: str) -> None:
        if not self._take(sign):
            raise self._error(
                f"{sign!r} is missing after {after}, before {self._token or 'the end'!r}", self._column
            )

    def _error(self, what: str, column: int, hint: str | None = None) -> UserError:
        return UserError(
            f"The condition is wrong at column {column}: {what}.", where=repr(self.text), hint=hint
        )

    # -- the grammar --------------------------------------------------------------------------------------------

    def _or(self) -> _Node:
        return self._chain("or", self._and, True)

    def _and(self) -> _Node:
        return self._chain("and", self._not, False)

    def _chain(self, word: str, part: Callable[[], _Node], decides: bool) -> _Node:
        nodes, column = [part()], self._column
        while self._take(word):
            nodes.append(part())
        if len(nodes) == 1:
            return nodes[0]
        for node in nodes:
            self._want(node, truth=True, by=word)

        def value(scope: _Scope) -> bool | None:
            found = [node.value(scope) for node in nodes]
            if decides in found:
                return decides
            return None if None in found else not decides

        return _Node(True, column, value)

    def _not(self) -> _Node:
        column = self._column
        if not self._take("not"):
            return self._comparison()
        self._deeper()
        node = self._want(self._not(), truth=True, by="not")
        self.depth -= 1

        def value(scope: _Scope) -> bool | None:
            found = node.value(scope)
            return None if found is None else not found

        return _Node(True, column, value)

    def _comparison(self) -> _Node:
        left, column = self._sum(), self._column
        sign = self._take(*_COMPARE)
        if not sign:
            return left
        right = self._sum()
        if self._kind == "sign" and self._token in _COMPARE:
            raise self._error("comparisons do not chain", self._column, 'Join two with "and".')
        return self._combined(left, right, column, sign, _COMPARE[sign], truth=True)

    def _sum(self) -> _Node:
        node, column = self._product(), self._column
        while sign := self._take("+", "-"):
            act: Callable[[float, float], float] = operator.add if sign == "+" else operator.sub
            node = self._combined(node, self._product(), column, sign, act)
            column = self._column
        return node

    def _product(self) -> _Node:
        node, column = self._sign(), self._column
        while sign := self._take("*", "/"):
            node = self._combined(node, self._sign(), column, sign, operator.mul if sign == "*" else _divided)
            column = self._column
        return node

    def _combined(
        self,
        left: _Node,
        right: _Node,
        column: int,
        sign: str,
        act: Callable[[float, float], Any],
        truth: bool = False,
    ) -> _Node:
        self._want(left, truth=False, by=sign)
        self._want(right, truth=False, by=sign)

        def value(scope: _Scope) -> Any:
            one, other = left.value(scope), right.value(scope)
            return None if one is None or other is None else act(one, other)

        return _Node(truth, column, value)

    def _sign(self) -> _Node:
        column = self._column
        if not self._take("-"):
            return self._atom()
        self._deeper()
        node = self._want(self._sign(), truth=False, by="-")
        self.depth -= 1

        def value(scope: _Scope) -> float | None:
            found = node.value(scope)
            return None if found is None else -found

        return _Node(False, column, value)

    def _atom(self) -> _Node:
        kind, word, column = self.tokens[self.place]
        if self._take("("):
            self._deeper()
            node = self._or()
            self.depth -= 1
            self._expect(")", "what the parenthesis holds")
            return node
        if kind == "end":
            raise self._error("it breaks off", column)
        if kind == "sign" or word in ("and", "or", "not"):
            raise self._error(f"a number or a metric is missing before {word!r}", column)
        self.place += 1
        if kind == "number":
            number = float(word)
            return _Node(False, column, lambda scope: number)
        if kind == "name" and self._take("("):
            return self._call(word, column)
        if kind == "name" and word == "step":
            return _Node(False, column, lambda scope: float(scope.step))
        return self._newest(word, column)

    def _newest(self, metric: str, column: int) -> _Node:
        self.metrics.add(metric)
        self.begins.append(
            lambda memory: _weights_step(metric, memory[metric].newest_step) if metric in memory else None
        )
        return _Node(False, column, lambda scope: scope.memory[metric].newest)

    # -- functions ----------------------------------------------------------------------------------------------

    def _call(self, name: str, column: int) -> _Node:
        self._deeper()
        if name in TESTS:
            node = self._test(name, column)
        elif name in WINDOWS:
            node = self._window(name, column)
        elif name in BESTS:
            node = self._best(name, column)
        else:
            known = (*WINDOWS, *BESTS, *TESTS)
            raise self._error(f"there is no function {name!r}", column, nearest(name, known))
        self.depth -= 1
        self._expect(")", f"what {name} is given")
        return node

    def _test(self, name: str, column: int) -> _Node:
        of, test = self._want(self._sum(), truth=False, by=name), TESTS[name]

        def value(scope: _Scope) -> bool | None:
            found = of.value(scope)
            return None if found is None else test(found)

        return _Node(True, column, value)

    def _window(self, name: str, column: int) -> _Node:
        metric = self._metric(name)
        self._expect(",", "the metric")
        least, act = WINDOWS[name]
        num = self._count(name, least)

        def value(scope: _Scope) -> float | None:
            found = scope.memory[metric].window(num)
            return None if found is None else act(*found)

        def begin(memory: RecentMetrics) -> int | None:
            found = memory[metric].window(num)
            return None if found is None else _weights_step(metric, int(found[1][0]))

        self.begins.append(begin)
        return _Node(False, column, value)

    def _best(self, name: str, column: int) -> _Node:
        metric = self._metric(name)
        tolerance = 0.0
        if name == "since_best" and self._take(","):
            if self._kind != "number" or not 0 <= float(self._token) < 1:
                raise self._error("since_best takes a share from 0 to 1", self._column)
            tolerance = float(self._token)
            self.place += 1

        def value(scope: _Scope) -> float | None:
            values = scope.memory[metric]
            place = values.place_of_best(tolerance)
            if place is None:
                return None
            if name == "best":
                return values.finite[place]
            since_acted = len(values.steps) - bisect.bisect_right(values.steps, scope.acted_at)
            return float(min(len(values.steps) - 1 - place, since_acted))

        def begin(memory: RecentMetrics) -> int | None:
            values = memory[metric]
            place = values.place_of_best(tolerance)
            if place is None:
                return None
            return _weights_step(metric, values.steps[min(place + 1, len(values.steps) - 1)])

        self.begins.append(begin)
        return _Node(False, column, value)

    def _metric(self, function: str) -> str:
        kind, word, column = self.tokens[self.place]
        if kind not in ("name", "quoted") or (kind == "name" and word in ("step", "and", "or", "not")):
            raise self._error(
                f"{function} needs the name of a metric first", column, f"For example: {function}(loss, 50)."
            )
        self.place += 1
        self.metrics.add(word)
        return word

    def _count(self, function: str, least: int) -> int:
        kind, word, column = self.tokens[self.place]
        if kind != "number" or not word.isdigit() or not least <= int(word) <= MAX_WINDOW:
            raise self._error(
                f"{function} needs a whole number of values from {least} to {MAX_WINDOW:,}", column
            )
        self.place += 1
        return int(word)

    # -- checks -------------------------------------------------------------------------------------------------

    def _want(self, node: _Node, *, truth: bool, by: str) -> _Node:
        if node.is_truth != truth:
            kind = "a comparison, not a number" if truth else "a number, not a comparison"
            raise self._error(f"{by!r} takes {kind}", node.column)
        return node

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error("it is nested too deeply", self._column)


def _offer(rest: str) -> str | None:
    for sign, instead in (("=", "=="), ("&", "and"), ("|", "or"), ("!", "not"), ("%", "*"), ("[", "(")):
        if rest.startswith(sign):
            return f"Did you mean {instead!r}?"
    return None


def _weights_step(metric: str, step: int) -> int:
    return step if metric.startswith(EVALUATION) else step - 1


def _divided(one: float, other: float) -> float:
    if other:
        return one / other
    return math.nan if not one or math.isnan(one) else math.copysign(math.inf, one)
