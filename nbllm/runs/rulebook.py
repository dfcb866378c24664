"""The rules of a run as they stand, folded out of its events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nbllm.core.errors import RunError, UserError, nearest
from nbllm.runs.actions import Action
from nbllm.runs.events import is_count
from nbllm.runs.rules import MAX_RULES, Rule

ACTOR = "rule:"


@dataclasses.dataclass
class RuleState:
    """A rule and what became of it.

    Args:
        rule: The rule.
        on: Whether it may act.
        fired: How often it has acted.
        last_step: The step at which it acted last.
        left: How many more times it may act.
        set_at: The step at which it was set or switched on; it looks at later steps only. -1: from the start.
        acted_at: The step at which it acted last on the current branch, for its cooldown; -1 when it has not.
    """

    rule: Rule
    on: bool = True
    fired: int = 0
    last_step: int | None = None
    left: int = 0
    set_at: int = -1
    acted_at: int = -1

    def __post_init__(self) -> None:
        """A rule that is new may act as often as it says."""
        self.left = self.rule.limit

    def may_act(self, step: int) -> bool:
        """Say whether it is on and its cooldown is over at `step`."""
        cooldown_ends = self.acted_at + self.rule.cooldown if self.acted_at >= 0 else -1
        return self.on and step > max(self.set_at, cooldown_ends)


class RuleBook:
    """The rules of a run by name; `take` follows its action events.

    Args:
        rules: Those that it was started with.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._states = {rule.name: RuleState(rule) for rule in rules}

    def __getitem__(self, name: str) -> RuleState:
        """Return a rule's state.

        Raises:
            RunError: There is no such rule.
        """
        if name not in self._states:
            hint = nearest(name, self._states) if self._states else "It has none."
            raise RunError(f"This run has no rule {name!r}.", hint=hint)
        return self._states[name]

    def __iter__(self) -> Iterator[RuleState]:
        return iter(self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def take(self, action: Action) -> None:
        """Take the next action into account: a rule set or switched, something done by one, a rewind."""
        if action.action == "rule" and action.outcome == "applied":
            self._change(action.args, action.step)
        name = action.actor.removeprefix(ACTOR)
        if action.firing and action.actor.startswith(ACTOR) and name in self._states:
            self._acted(self._states[name], action)
        if action.action == "rewind" and action.outcome == "applied":
            asked = action.args.get("to")
            to = asked if is_count(asked) else action.step
            for state in self:
                state.set_at, state.acted_at = min(state.set_at, to), min(state.acted_at, to)

    def _change(self, args: Mapping[str, Any], step: int) -> None:
        """A rule is set, or switched on or off; events may hold anything."""
        if "when" in args:
            rule = _rule_of(args)
            if rule is not None and (rule.name in self._states or len(self) < MAX_RULES):
                self._states[rule.name] = RuleState(rule, set_at=step)
            return
        state = self._states.get(str(args.get("name")))
        if state is not None:
            if args.get("on") is True and not state.on:
                state.left, state.set_at = state.rule.limit, step
            state.on = args.get("on") is True

    def _acted(self, state: RuleState, action: Action) -> None:
        if action.firing > state.fired:  # the first of the things that it does at once
            state.fired, state.last_step = action.firing, action.step
            state.left -= 1
            state.on = state.on and state.left > 0
        state.acted_at = action.step


def recorded_rules(record: Mapping[str, Any]) -> list[Rule]:
    """Return the rules that a run was started with; a replay has none, since it repeats what they did."""
    config = record.get("config")
    entries = config.get("rules") if isinstance(config, dict) else None
    if record.get("replay") is not None or not isinstance(entries, list):
        return []
    return [rule for entry in entries[:MAX_RULES] if (rule := _rule_of(entry)) is not None]


def check_rules(rules: object) -> tuple[Rule, ...]:
    """Return what a configuration holds as rules.

    Raises:
        UserError: It is not a list of rules, or two have one name.
    """
    if isinstance(rules, (str, Mapping)) or not isinstance(rules, Iterable):
        raise UserError("rules must be a list of rules.", hint="rules=[nb.rules.spike()]")
    found = []
    for rule in rules:
        if not isinstance(rule, (Rule, Mapping)):
            raise UserError(
                f"{rule!r} is not a rule.", hint="nb.rules.spike(), or nb.rules.Rule(name=..., ...)"
            )
        found.append(rule if isinstance(rule, Rule) else Rule.from_dict(rule))
    names = [rule.name for rule in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two rules are called {name!r}.")
    if len(found) > MAX_RULES:
        raise UserError(f"A run has at most {MAX_RULES} rules, not {len(found)}.")
    return tuple(found)


def _rule_of(values: object) -> Rule | None:
    try:
        return Rule.from_dict(values) if isinstance(values, Mapping) else None
    except (UserError, TypeError):
        return None
