"""Whether two answers to a problem of mathematics are the same, though they are written differently.

Expressions are compared by their values, at several points where they have variables: of two that differ, hardly any
agree there. Nothing that a model wrote is executed; the parser knows numbers, letters, fractions, roots, powers and the
four operations.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Mapping

_MOST_CHARACTERS = 400
_POINTS = 3
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_REMOVED = re.compile(
    r"\\left|\\right|\\[!,;: ]|\\(?:text|mbox|mathrm)\{[^{}]*\}|\^\{?\\circ\}?|\\?%|\\?\$|~"
)
_REPLACED = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cdot": "*", r"\times": "*", r"\div": "/", r"\pi": "π", "×": "*",  # noqa: RUF001
    "·": "*", "÷": "/", "−": "-", r"\{": "{", r"\}": "}",  # noqa: RUF001
}  # fmt: skip
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\frac|\\sqrt|[A-Za-zπ√]|[-+*/^(){}\[\]]")


def last_boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{...}` of a text holds; `None` where there is none or it is not closed."""
    for match in reversed(list(re.finditer(r"\\f?boxed\s*\{", text))):
        depth = 0
        for place in range(match.end() - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[match.end() : place]
    return None


def equal(one: str, two: str) -> bool:
    """Return whether two answers are the same: equal as texts, in value, or element by element."""
    first, second = _normalized(one), _normalized(two)
    if first == second:
        return first != "" or one == two
    elements, others = _elements(first), _elements(second)
    if elements is not None and others is not None:
        return (first[0], first[-1]) == (second[0], second[-1]) and _same(first[0], elements, others)
    values, expected = _values(first), _values(second)
    if values is None or expected is None:
        return False
    return all(
        cmath.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(values, expected, strict=True)
    )


def _same(opening: str, elements: list[str], others: list[str]) -> bool:
    """Compare the elements of two tuples or intervals in their order, of two sets in any."""
    if len(elements) != len(others):
        return False
    if opening != "{":
        return all(map(equal, elements, others))
    left = list(others)
    for each in elements:
        match = next((other for other in left if equal(each, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _normalized(text: str) -> str:
    text = _REMOVED.sub("", text.strip()).strip().rstrip(".")
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)  # LaTeX takes one digit each
    text = re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"^[A-Za-z]=", "", text)  # x = 5
    return text if text[:1] in _BRACKETS else _THOUSANDS.sub("", text)


def _elements(text: str) -> list[str] | None:
    """Return what commas separate between brackets, the brackets of an interval with it; `None` for anything else."""
    if text[:1] not in _BRACKETS or text[-1:] not in _BRACKETS.values():
        return None
    parts, depth, begin = [], 0, 1
    for place, sign in enumerate(text):
        depth += (sign in _BRACKETS) - (sign in _BRACKETS.values())
        if depth == 0 and place < len(text) - 1:
            return None  # "(1)(2)"
        if sign == "," and depth == 1:
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:-1]] if parts else None


def _values(text: str) -> list[complex] | None:
    """Return the values of an expression with its letters at several points; `None` where it cannot be read."""
    if not text or len(text) > _MOST_CHARACTERS or _TOKEN.sub("", text):
        return None
    tokens = _TOKEN.findall(text)
    letters = sorted({token for token in tokens if token.isalpha()} - {"e", "i", "π", "√"})
    out = []
    for point in range(_POINTS):
        known = {letter: complex(0.31 + 0.0173 * ord(letter) + 0.61 * point) for letter in letters}
        try:
            out.append(
                _Expression(tokens, {**known, "e": complex(math.e), "i": 1j, "π": complex(math.pi)}).value()
            )
        except (ValueError, ZeroDivisionError, OverflowError, IndexError, RecursionError):
            return None
    return out if all(cmath.isfinite(value) for value in out) else None


class _Expression:
    """Evaluates an expression by recursive descent."""

    def __init__(self, tokens: list[str], letters: Mapping[str, complex]) -> None:
        self._tokens, self._letters, self._place = tokens, letters, 0

    def value(self) -> complex:
        """Return the value of the whole."""
        found = self._sum()
        if self._place < len(self._tokens):
            raise ValueError("something is left")
        return found

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self) -> str:
        self._place += 1
        return self._tokens[self._place - 1]

    def _sum(self) -> complex:
        found = self._term()
        while self._next() in ("+", "-"):
            found = found + self._term() if self._take() == "+" else found - self._term()
        return found

    def _term(self) -> complex:
        found = self._signed()
        while (sign := self._next()) and sign not in "+-)}]":
            if sign in "*/":
                self._take()
                found = found * self._signed() if sign == "*" else found / self._signed()
            else:
                found *= self._power()
        return found

    def _signed(self) -> complex:
        if self._next() in ("+", "-"):
            return -self._signed() if self._take() == "-" else self._signed()
        return self._power()

    def _power(self) -> complex:
        base = self._atom()
        if self._next() != "^":
            return base
        self._take()
        return complex(base ** self._signed())

    def _atom(self) -> complex:
        token = self._take()
        if token in _BRACKETS:
            found = self._sum()
            if self._take() != _BRACKETS[token]:
                raise ValueError("a bracket is not closed")
            return found
        if token == "\\frac":  # noqa: S105 (of an expression)
            return self._atom() / self._atom()
        if token in ("\\sqrt", "√"):
            root = 2 + 0j
            if self._next() == "[":
                root = self._atom()
            return complex(self._atom() ** (1 / root))
        if token in self._letters:
            return self._letters[token]
        return complex(float(token))
