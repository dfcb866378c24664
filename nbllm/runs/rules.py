"""Rules: what a run does by itself when a condition on its metrics holds. Use it as `nb.rules`.

    run.rule("spike", when="loss > 1.5 * median(loss, 50)", do=nb.rules.rewind())
    nb.train(lm, text, rules=[nb.rules.nan(), nb.rules.plateau()])

`nbllm.runs.conditions` describes what may stand in `when`. What may stand in `do` is made by the functions below:
`rewind`, `set`, `scale`, `freeze`, `unfreeze`, `save`, `evaluate`, `sample`, `pause`, `stop`; one of them, or a list.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from nbllm.core.config import Config, check_plain_types
from nbllm.core.errors import UserError, nearest
from nbllm.runs.actions import find, rule_actions, words
from nbllm.runs.arguments import short
from nbllm.runs.commands import check_actor
from nbllm.runs.conditions import Condition

__all__ = [
    "Rule",
    "evaluate",
    "freeze",
    "nan",
    "no_progress",
    "pause",
    "length_running_away",
    "plateau",
    "rewind",
    "reward_hacking",
    "sample",
    "save",
    "scale",
    "set",
    "spike",
    "stop",
    "unfreeze",
]


def __dir__() -> list[str]:
    """What completion offers after `nb.rules.`: rules and what they do, not what this file imports."""
    return list(__all__)


MAX_ACTIONS = 10  # of a rule
MAX_RULES = 100  # of a run
RuleAction = dict[str, Any]  # {"action": ..., "args": {...}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(Config):
    """Something that a run does by itself, at the step boundary after the step that fulfilled the condition.

    What a rule does is recorded like what a person does, at its step and with the actor "rule:<name>"; a replay
    repeats the actions and does not ask the condition again.

    Training is deterministic: after a rewind alone it meets the same trouble again. So change a setting too
    (`scale(lr=0.5)`); `cooldown` and `limit` keep a rule from repeating itself forever.

    Args:
        name: What it is called.
        when: The condition; see `nbllm.runs.conditions`. It is looked at when a metric that it names has a new value.
        do: What to do: one of this module's functions, or several in the order in which they are done.
        cooldown: So many steps it rests after it has acted, counted from where a rewind went back to.
        limit: So many times it acts, whether or not what it asked was refused; then it is off. Switched on again,
            it may act as often once more.

    Raises:
        UserError: The name, the condition or an action is not valid.
    """

    name: str
    when: str
    do: tuple[RuleAction, ...]
    cooldown: int = 10
    limit: int = 3

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping, which may come from anywhere.

        Raises:
            UserError: It is not a rule.
        """
        checked = check_plain_types(cls, values)
        missing = [name for name in ("name", "when", "do") if name not in checked]
        if missing:
            raise UserError(f"A rule needs {' and '.join(missing)}.")
        return super().from_dict(checked)

    def __post_init__(self) -> None:
        """Check everything that can be checked without the run."""
        if not isinstance(self.name, str):
            raise UserError(f"A rule's name must be a text, not {self.name!r}.")
        check_actor(self.actor)
        object.__setattr__(self, "do", _checked(self.do))
        _ = self.condition
        for name, low in (("cooldown", 0), ("limit", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 10**9:
                raise UserError(
                    f"{name} must be a whole number of at least {low}, not {value!r}.", where="Rule"
                )

    @property
    def actor(self) -> str:
        """In whose name it acts."""
        return f"rule:{self.name}"

    @functools.cached_property
    def condition(self) -> Condition:
        """The condition, parsed."""
        return Condition(self.when)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return {**super().to_dict(), "do": [dict(action) for action in self.do]}

    @property
    def do_text(self) -> str:
        """What it does, in words."""
        return ", then ".join(words(action["action"], action["args"]) for action in self.do)


# What a rule can do


def rewind(steps: int | None = None) -> RuleAction:
    """Go back to the newest checkpoint from before the trouble. What was set since is undone: set anew after it.

    Args:
        steps: At least so many steps, or to the beginning; `None` is before everything that the condition looks at,
            since what was saved after a spike began has the spike in its weights.
    """
    return _action("rewind", {"steps": steps})


def set(**values: float) -> RuleAction:
    """Change settings: `set(lr=1e-4)`."""
    return _action("set", values)


def scale(**factors: float) -> RuleAction:
    """Multiply settings: `scale(lr=0.5)`.

    They are multiplied as they are when the rule acts, before it rewinds: each time halves the learning rate once
    more, also where every rewind goes back to the same checkpoint.
    """
    return _action("scale", factors)


def freeze(*patterns: str) -> RuleAction:
    """Stop training the parts that the patterns name, as in `run.freeze`."""
    return _action("freeze", {"patterns": list(patterns)})


def unfreeze(*patterns: str) -> RuleAction:
    """Train the parts again that the patterns name."""
    return _action("unfreeze", {"patterns": list(patterns)})


def pause() -> RuleAction:
    """Hold the run, for a person to look at it."""
    return _action("pause")


def stop() -> RuleAction:
    """End the run, with a checkpoint."""
    return _action("stop")


def save() -> RuleAction:
    """Write a checkpoint."""
    return _action("save")


def evaluate() -> RuleAction:
    """Measure on held-out text."""
    return _action("evaluate")


def sample(prompt: str = "") -> RuleAction:
    """Let the model continue a prompt."""
    return _action("sample", {"prompt": prompt})


# Ready-made rules


def spike(times: float = 1.5, window: int = 50, lr: float = 0.5) -> Rule:
    """Go back and lower the learning rate when the loss jumps; then rest for `window` steps.

    Args:
        times: The loss is more than so many times its median,
        window: over so many steps.
        lr: What the learning rate is multiplied with.
    """
    when = f"loss > {times:g} * median(loss, {window})"
    return Rule(name="spike", when=when, do=(rewind(), scale(lr=lr)), cooldown=window)


def nan(lr: float = 0.5) -> Rule:
    """Go back and lower the learning rate when loss or gradient is not a finite number.

    Our own loop skips such a step and ends the run after `max_bad_steps` in a row; this acts at the first.

    Args:
        lr: What the learning rate is multiplied with.
    """
    when = "not isfinite(loss) or not isfinite(grad_norm)"
    return Rule(name="nan", when=when, do=(rewind(), scale(lr=lr)), cooldown=0)


def plateau(
    metric: str = "evaluation.loss", patience: int = 3, lr: float = 0.5, tolerance: float = 0.001
) -> Rule:
    """Lower the learning rate when a metric, which is to fall, does so no longer.

    Args:
        metric: What is to fall; as steps vary, that of the evaluations.
        patience: So many values, since the best or since the rule last acted, without an improvement.
        lr: What the learning rate is multiplied with.
        tolerance: An improvement by less than this share does not count.
    """
    when = f"since_best({_quoted(metric)}, {tolerance:g}) >= {patience}"
    return Rule(name="plateau", when=when, do=(scale(lr=lr),), cooldown=0, limit=10)


def no_progress(metric: str = "evaluation.loss", patience: int = 6, tolerance: float = 0.001) -> Rule:
    """Stop, with a checkpoint, when a metric, which is to fall, does so no longer.

    Args:
        metric: What is to fall.
        patience: So many values since the best without an improvement.
        tolerance: An improvement by less than this share does not count.
    """
    when = f"since_best({_quoted(metric)}, {tolerance:g}) >= {patience}"
    return Rule(name="no progress", when=when, do=(stop(),), limit=1)


def reward_hacking(budget: float = 10.0, window: int = 20, factor: float = 2.0) -> Rule:
    """Make divergence dearer while the reward of a policy rises with its divergence over budget.

    A reward that rises while the policy is far from its reference is more often a flaw of the reward that was found
    than a better answer. Of a run that learns from a reward.

    Args:
        budget: Of the divergence `kl`, in nats for an answer,
        window: as a mean over so many steps, in which the reward rises.
        factor: What the coefficient of the divergence is multiplied with.

    Source: Gao et al. 2022, arXiv:2210.10760 (how reward and true value part as the divergence grows).
    """
    when = f"mean(kl, {window}) > {budget:g} and slope(reward, {window}) > 0"
    return Rule(name="reward hacking", when=when, do=(scale(kl_coefficient=factor),), cooldown=window)


def length_running_away(times: float = 2.0, window: int = 20) -> Rule:
    """Hold a run whose answers become much longer, for a person to see whether a reward pays for length.

    Args:
        times: The length of answers is more than so many times the least that it was,
        window: as a mean over so many steps.
    """
    when = f"mean(length, {window}) > {times:g} * best(length)"
    return Rule(name="length running away", when=when, do=(pause(),), cooldown=10 * window)


# Checks


def _checked(value: Any) -> tuple[RuleAction, ...]:
    given = [value] if isinstance(value, Mapping) else value
    if not isinstance(given, (list, tuple)) or not given:
        raise UserError("A rule needs something to do.", hint="For example: do=nb.rules.rewind().")
    if len(given) > MAX_ACTIONS:
        raise UserError(f"A rule does at most {MAX_ACTIONS} things, not {len(given)}.")
    return tuple(_checked_one(action) for action in given)


def _checked_one(value: Any) -> RuleAction:
    if not isinstance(value, Mapping) or not value.keys() <= {"action", "args"} or "action" not in value:
        raise UserError(f"{short(value)} is nothing to do.", hint="For example: do=nb.rules.rewind().")
    return _action(value["action"], value.get("args", {}))


def _action(name: Any, args: Any = MappingProxyType({})) -> RuleAction:
    kind = find(name)
    if kind is None or not kind.for_rules:
        raise UserError(f"A rule cannot {short(name)}.", hint=nearest(str(name)[:80], rule_actions()))
    return {"action": name, "args": kind.check_for_rule(args)}


def _quoted(metric: str) -> str:
    return metric if metric.replace(".", "_").isidentifier() else f'"{metric}"'
