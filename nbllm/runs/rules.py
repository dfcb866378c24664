"""Rules: what is to be done to a run when its numbers fulfil a condition. Use it as `nb.rules`.

    run.rule("spike", when="loss > 1.5 * median(loss, 50)", do=nb.rules.rewind())
    nb.train(lm, text, rules=[nb.rules.nan(), nb.rules.plateau()])

`nbllm.runs.conditions` describes what may stand in `when`. What may stand in `do` is made by the functions below:
`rewind`, `set`, `scale`, `freeze`, `unfreeze`, `save`, `evaluate`, `sample`, `pause`, `stop`; one of them, or a list.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

from nbllm.core.config import Config, check_plain_types
from nbllm.core.errors import UserError, nearest
from nbllm.runs.commands import check_actor
from nbllm.runs.conditions import Condition
from nbllm.runs.events import is_number

__all__ = [
    "Rule",
    "evaluate",
    "freeze",
    "nan",
    "no_progress",
    "pause",
    "plateau",
    "rewind",
    "sample",
    "save",
    "scale",
    "set",
    "spike",
    "stop",
    "unfreeze",
]

MAX_DEEDS = 10
MAX_RULES = 100  # of a run
Deed = dict[str, Any]  # {"action": ..., "args": {...}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule(Config):
    """Something to be done by itself, at the step boundary after the step that fulfilled the condition.

    What a rule does is recorded like what a person does, at its step and with the actor "rule:<name>"; a replay
    repeats the actions and does not ask the condition again.

    Training is deterministic: after a rewind alone it meets the same trouble again. So change something too
    (`scale(lr=0.5)`); and `cooldown` and `limit` see to it that a rule does not go round for ever.

    Args:
        name: What it is called.
        when: The condition; see `nbllm.runs.conditions`. It is looked at when a metric that it names has a new value.
        do: What to do: one of this module's functions, or several in the order in which they are done.
        cooldown: So many steps it rests after it has acted, counted from where a rewind went back to.
        limit: So many times it acts, whether or not what it asked was refused; then it is off. Switched on again,
            it may act as often once more.

    Raises:
        UserError: The name, the condition or an action is none.
    """

    name: str
    when: str
    do: tuple[Deed, ...]
    cooldown: int = 10
    limit: int = 3

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping, which may come from anywhere.

        Raises:
            UserError: It is no rule.
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
        object.__setattr__(self, "do", _deeds(self.do))
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
        return {**super().to_dict(), "do": [dict(deed) for deed in self.do]}

    @property
    def do_text(self) -> str:
        """What it does, in words."""
        return ", then ".join(_words(deed["action"], deed["args"]) for deed in self.do)


# What a rule can do


def rewind(steps: int | None = None) -> Deed:
    """Go back to the newest checkpoint from before the trouble. What was set since is undone: set anew after it.

    Args:
        steps: At least so many steps, or to the beginning; `None` is before everything that the condition looks at,
            since what was saved after a spike began has the spike in its weights.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise UserError(f"rewind goes back at least 1 step, not {steps!r}.")
    return {"action": "rewind", "args": {"steps": steps}}


def set(**values: float) -> Deed:
    """Change settings: `set(lr=1e-4)`."""
    return {"action": "set", "args": _numbers("set", values)}


def scale(**factors: float) -> Deed:
    """Multiply settings: `scale(lr=0.5)`.

    They are multiplied as they are when the rule acts, before it rewinds: each time halves the learning rate once
    more, also where every rewind goes back to the same checkpoint.
    """
    return {"action": "scale", "args": _numbers("scale", factors)}


def freeze(*patterns: str) -> Deed:
    """Stop training the parts whose names match."""
    return {"action": "freeze", "args": {"patterns": _texts("freeze", patterns)}}


def unfreeze(*patterns: str) -> Deed:
    """Train the parts again whose names match."""
    return {"action": "unfreeze", "args": {"patterns": _texts("unfreeze", patterns)}}


def pause() -> Deed:
    """Hold the run, for a person to look at it."""
    return {"action": "pause", "args": {}}


def stop() -> Deed:
    """End the run, with a checkpoint."""
    return {"action": "stop", "args": {}}


def save() -> Deed:
    """Write a checkpoint."""
    return {"action": "save", "args": {}}


def evaluate() -> Deed:
    """Measure on held-out text."""
    return {"action": "evaluate", "args": {}}


def sample(prompt: str = "") -> Deed:
    """Let the model continue a prompt."""
    return {"action": "sample", "args": {"prompt": _texts("sample", (prompt,))[0]}}


# Rules to have


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
        tolerance: An improvement by less than this share is none.
    """
    when = f"since_best({_quoted(metric)}, {tolerance:g}) >= {patience}"
    return Rule(name="plateau", when=when, do=(scale(lr=lr),), cooldown=0, limit=10)


def no_progress(metric: str = "evaluation.loss", patience: int = 6, tolerance: float = 0.001) -> Rule:
    """Stop, with a checkpoint, when a metric, which is to fall, does so no longer.

    Args:
        metric: What is to fall.
        patience: So many values since the best without an improvement.
        tolerance: An improvement by less than this share is none.
    """
    when = f"since_best({_quoted(metric)}, {tolerance:g}) >= {patience}"
    return Rule(name="no progress", when=when, do=(stop(),), limit=1)


# Checks


_MAKERS: dict[str, Callable[..., Deed]] = {
    "rewind": rewind,
    "set": set,
    "scale": scale,
    "freeze": lambda patterns: freeze(*patterns),
    "unfreeze": lambda patterns: unfreeze(*patterns),
    "pause": pause,
    "stop": stop,
    "save": save,
    "evaluate": evaluate,
    "sample": sample,
}


def _deeds(value: Any) -> tuple[Deed, ...]:
    given = [value] if isinstance(value, Mapping) else value
    if not isinstance(given, (list, tuple)) or not given:
        raise UserError("A rule needs something to do.", hint="For example: do=nb.rules.rewind().")
    if len(given) > MAX_DEEDS:
        raise UserError(f"A rule does at most {MAX_DEEDS} things, not {len(given)}.")
    return tuple(_deed(deed) for deed in given)


def _deed(value: Any) -> Deed:
    if not isinstance(value, Mapping) or not value.keys() <= {"action", "args"} or "action" not in value:
        raise UserError(f"{str(value)[:60]!r} is nothing to do.", hint="For example: do=nb.rules.rewind().")
    action, args = value["action"], value.get("args", {})
    if not isinstance(action, str) or action not in _MAKERS:
        raise UserError(f"A rule cannot {str(action)[:40]!r}.", hint=nearest(str(action), _MAKERS))
    try:
        return _MAKERS[action](**args)
    except TypeError as error:
        raise UserError(f"{action} cannot take {str(args)[:60]}: {error}.") from error


def _numbers(action: str, values: Mapping[str, Any]) -> dict[str, float]:
    if not values or not all(is_number(value) and math.isfinite(value) for value in values.values()):
        raise UserError(f"{action} needs settings with numbers, such as {action}(lr=0.5), not {values!r}.")
    return dict(values)


def _texts(action: str, values: tuple[Any, ...]) -> list[str]:
    if not values or not all(isinstance(value, str) for value in values):
        raise UserError(f"{action} takes texts, not {values!r}.")
    return list(values)


def _quoted(metric: str) -> str:
    return metric if metric.replace(".", "_").isidentifier() else f'"{metric}"'


def _words(action: str, args: Mapping[str, Any]) -> str:
    if action in ("set", "scale"):
        sign = "=" if action == "set" else " times "
        return ", ".join(f"{name}{sign}{value:g}" for name, value in args.items())
    if action == "rewind":
        return "rewind" if args["steps"] is None else f"rewind by {args['steps']} steps"
    if action in ("freeze", "unfreeze"):
        return f"{action} {', '.join(args['patterns'])}"
    if action == "sample":
        return f"sample {args['prompt']!r}"
    return action
