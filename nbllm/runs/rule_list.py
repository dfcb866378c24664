"""The rules of a run as a person sees and switches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from nbllm.core.errors import RunError, nearest
from nbllm.core.html import fragment, table
from nbllm.core.text_table import text_table
from nbllm.runs.asking import Outcome
from nbllm.runs.rulebook import RuleState

HEADER = ("rule", "when", "do", "on", "acted", "last at step")


class RunRule:
    """A rule of a run: what it says, how often it has acted, and the switch.

    Args:
        state: The rule as it was when this was made.
        switch: Switches the rule of a name on or off.
    """

    def __init__(self, state: RuleState, switch: Callable[[str, bool], Outcome]) -> None:
        self._switch = switch
        self.rule = state.rule
        self.is_on = state.on
        self.fired = state.fired
        self.last_step = state.last_step

    @property
    def name(self) -> str:
        """What it is called."""
        return self.rule.name

    @property
    def when(self) -> str:
        """Its condition."""
        return self.rule.when

    @property
    def do(self) -> str:
        """What it does, in words."""
        return self.rule.do_text

    def on(self) -> Outcome:
        """Let it act, `limit` times more."""
        return self._switch(self.name, True)

    def off(self) -> Outcome:
        """Let it act no more."""
        return self._switch(self.name, False)

    def row(self) -> tuple[object, ...]:
        """Return it as a table's row."""
        times = f"{self.fired} time{'' if self.fired == 1 else 's'}"
        return (self.name, self.when, self.do, "on" if self.is_on else "off", times, self.last_step)

    def to_card(self) -> dict[str, Any]:
        """Return it as plain values for a panel."""
        return {
            "name": self.name,
            "when": self.when,
            "do": self.do,
            "on": self.is_on,
            "fired": self.fired,
            "last_step": self.last_step,
        }

    def __repr__(self) -> str:
        text = f"Rule {self.name!r}: when {self.when}, {self.do} ({'on' if self.is_on else 'off'}"
        return f"{text}; acted {self.row()[4]})" if self.fired else f"{text})"


class RuleList(Sequence[RunRule]):
    """The rules of a run: by position, or by name."""

    def __init__(self, rules: Sequence[RunRule]) -> None:
        self._rules = list(rules)

    @overload
    def __getitem__(self, key: int | str) -> RunRule: ...
    @overload
    def __getitem__(self, key: slice) -> RuleList: ...
    def __getitem__(self, key: int | str | slice) -> RunRule | RuleList:
        if isinstance(key, slice):
            return RuleList(self._rules[key])
        if isinstance(key, int):
            return self._rules[key]
        for rule in self._rules:
            if rule.name == key:
                return rule
        names = [rule.name for rule in self._rules]
        hint = nearest(str(key), names) if names else "run.rule(...) sets one."
        raise RunError(f"This run has no rule {key!r}.", hint=hint)

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        if not self._rules:
            return "No rules; run.rule(...) sets one."
        return text_table(
            [HEADER, *(["" if v is None else str(v) for v in rule.row()] for rule in self._rules)]
        )

    def _repr_html_(self) -> str:
        if not self._rules:
            return fragment('<p class="muted">No rules; <code>run.rule(...)</code> sets one.</p>')
        return fragment(table([rule.row() for rule in self._rules], HEADER))
