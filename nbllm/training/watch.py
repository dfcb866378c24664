"""What the rules of a running loop look at, and which of them are due."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from nbllm.core.errors import nearest
from nbllm.runs.conditions import EVALUATION, Condition
from nbllm.runs.recent_metrics import MAX_WINDOW, RecentMetrics
from nbllm.runs.rulebook import RuleState
from nbllm.runs.rules import Rule
from nbllm.runs.timeline import Points, Timeline

NOT_METRICS = ("time", "step")


@dataclasses.dataclass(frozen=True)
class Due:
    """A rule that is to act.

    Args:
        rule: The rule.
        firing: How often it has acted, this time included.
        begins: The oldest step whose metrics the condition looks at.
        reason: The condition, and the values of its metrics.
        last: Whether it has reached its limit with this.
    """

    rule: Rule
    firing: int
    begins: int
    reason: str
    last: bool


class Watch:
    """Sees the events of a loop, and says at step boundaries which rules are due.

    Args:
        timeline: The run so far: its rules, and what they remember.
        step: The step that the run goes on from.
        blind: For a replay, in which rules do not act.
    """

    def __init__(self, timeline: Timeline, step: int, *, blind: bool = False) -> None:
        self.book = timeline.rules
        self.blind = blind
        self.memory = RecentMetrics()
        if not blind:
            self._remember(timeline.steps, "", step)
            self._remember(timeline.evaluations, EVALUATION, step)
        self.cut(step)

    def see(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Take the metrics of a step or an evaluation."""
        if self.blind:
            return
        prefix = EVALUATION if kind == "evaluation" else ""
        for name, value in numbers.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.memory.add(f"{prefix}{name}", step, value)

    def cut(self, step: int) -> None:
        """Forget what came after `step`: the run was rewound to it."""
        self.memory.cut(step)
        self._looked_at = step

    def due(self, step: int) -> tuple[list[Due], list[tuple[Rule, Exception]]]:
        """Return the rules that act at this boundary, and those that failed; each value is looked at once."""
        news, stepped = self.memory.news.copy(), step > self._looked_at
        self.memory.news.clear()
        self._looked_at = step
        found, broken = [], []
        for state in self.book:
            condition = state.rule.condition
            new = condition.metrics & news if condition.metrics else stepped
            if not new or not state.may_act(step):
                continue
            try:
                if condition.holds(self.memory, step, state.acted_at):
                    found.append(self._due(state, step))
            except Exception as error:  # whatever a rule does wrong, the run goes on
                broken.append((state.rule, error))
        return found, broken

    def doubt(self, condition: Condition) -> str:
        """Return a note on a metric that was not reported so far; "" where there is none."""
        unseen = sorted(condition.metrics - set(self.memory))
        if not unseen:
            return ""
        hint = nearest(unseen[0], self.memory) if list(self.memory) else ""
        return f"{unseen[0]!r} has not been reported yet. {hint}".strip()

    def _due(self, state: RuleState, step: int) -> Due:
        condition = state.rule.condition
        now = {name: self.memory[name].newest for name in sorted(condition.metrics)}
        numbers = ", ".join(f"{name} is {value:.4g}" for name, value in now.items() if value is not None)
        return Due(
            rule=state.rule,
            firing=state.fired + 1,
            begins=condition.begins(self.memory, step),
            reason=f"{condition.text} ({numbers})" if numbers else condition.text,
            last=state.left <= 1,
        )

    def _remember(self, points: Points, prefix: str, up_to: int) -> None:
        end = bisect.bisect_right(points.steps, up_to)
        newest = slice(max(0, end - MAX_WINDOW), end)
        for name, column in points.columns.items():
            if name not in NOT_METRICS:
                for step, value in zip(points.steps[newest], column[newest], strict=True):
                    if math.isfinite(value):
                        self.memory.add(f"{prefix}{name}", step, value)
