"""Actions: what can be done to a run, in one table, and the record of what was done.

Everything that asks for actions, takes them, records them or shows them reads `ACTIONS`: the handle (`nbllm.Run`), the
training loop, rules, the timeline, the panels and the command line. To add one, `declare` it here and give the loop
a function for it (`nbllm.training.applying`), or declare it anywhere with an `act` of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from nbllm.core.errors import RefusedError, nearest
from nbllm.core.registry import Registry
from nbllm.runs.arguments import Argument, short
from nbllm.runs.events import Event, is_count, is_number
from nbllm.runs.settings import Setting, check_settings

MAX_RECORDED = 2000  # characters of a text in the record of a refused action
MAX_NEW_TOKENS = 100_000

Words = Callable[[Mapping[str, Any]], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionType:
    """One kind of action.

    Args:
        name: What it is called in commands, events and messages.
        required: The arguments that it must be given.
        optional: The arguments that it may be given; `None` stands for not given.
        takes_settings: Its arguments are the run's settings by name, each with a number.
        done_by: "loop" (a command, taken at a step boundary), "launcher" (whoever can start a trainer), "replay", or
            "rule" (only a rule asks for it, and the loop turns it into another action).
        for_rules: Whether a rule may do it.
        rule_arguments: The optional arguments that it has in a rule, where they are others.
        changes_state: It changes the further course of the training. Such actions are numbered; a rewind undoes them, a
            resumed run repeats them.
        scripted: A replay takes it from its script alone, from nobody else.
        may_fail: An error while it is carried out refuses it, and does not end the run.
        past: What is said when it was applied: "paused".
        example: How it is written on the command line.
        words: How it is worded with its arguments; by default its name and the values.
        act: How a loop carries it out, called with the trainer and the checked arguments; returns the arguments to be
            recorded where they differ. `None`: `nbllm.training.applying` has a function for it.
    """

    name: str
    required: tuple[Argument, ...] = ()
    optional: tuple[Argument, ...] = ()
    takes_settings: bool = False
    done_by: Literal["loop", "launcher", "replay", "rule"] = "loop"
    for_rules: bool = False
    rule_arguments: tuple[Argument, ...] | None = None
    changes_state: bool = False
    scripted: bool = False
    may_fail: bool = False
    past: str = ""
    example: str = ""
    words: Words | None = None
    act: Callable[..., Mapping[str, Any] | None] | None = None

    def check(self, args: object, settings: Iterable[Setting] = ()) -> dict[str, Any]:
        """Return the arguments as their kinds' types.

        Args:
            args: What was asked, by name; it may be anything.
            settings: What the run lets people set.

        Raises:
            RefusedError: One is missing, unknown, of another kind or out of range; nothing is then done.
        """
        if not isinstance(args, Mapping):
            raise RefusedError(f"{self.name} cannot take {short(args)}: arguments are given by name.")
        if self.takes_settings:
            return check_settings(settings, args)
        return self._check(args, self.required, self.optional)

    def check_for_rule(self, args: object) -> dict[str, Any]:
        """Return the arguments that a rule gives, checked as far as that is possible without the run.

        Raises:
            RefusedError: As `check`.
        """
        assert self.for_rules, self.name
        if not isinstance(args, Mapping):
            raise RefusedError(f"{self.name} cannot take {short(args)}: arguments are given by name.")
        if self.takes_settings:
            if not args or not all(isinstance(n, str) and is_number(value) for n, value in args.items()):
                example = f"{self.name}(lr=0.5)"
                raise RefusedError(
                    f"{self.name} needs settings with numbers, such as {example}, not {short(args)}."
                )
            return dict(args)
        if self.rule_arguments is not None:
            return self._check(args, (), self.rule_arguments)
        return self._check(args, self.required, self.optional)

    def _check(
        self, args: Mapping[Any, Any], required: tuple[Argument, ...], optional: tuple[Argument, ...]
    ) -> dict[str, Any]:
        known = {argument.name: argument for argument in (*required, *optional)}
        given = {name: value for name, value in args.items() if value is not None or name not in known}
        for name in given:
            if name not in known:
                takes = f"it takes {', '.join(known)}" if known else "it takes nothing"
                raise RefusedError(f"{self.name} cannot take {short(name)}; {takes}.")
        missing = [argument.name for argument in required if argument.name not in given]
        if missing:
            raise RefusedError(f"{self.name} needs {' and '.join(missing)}.")
        return {name: known[name].check(value) for name, value in given.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """What a loop did with a command, as it stands in the run's record.

    Args:
        id: The command's id.
        action: "pause", "set", ...
        args: Its arguments as applied.
        actor: Who asked.
        step: The step boundary at which it was taken: so many optimizer steps were done.
        outcome: "applied", "refused" or "pending".
        reason: Why it was refused, or what was found while applying it.
        time: When, in seconds since 1970.
        asked: When it was asked.
        index: Its number among the state actions; -1 for others.
        firing: When a rule of the loop did it: how often that rule had then acted; else 0.
    """

    id: str
    action: str
    args: dict[str, Any]
    actor: str
    step: int
    outcome: str
    reason: str = ""
    time: float = 0.0
    asked: float | None = None
    index: int = -1
    firing: int = 0


def action_of(event: Event, index: int = -1) -> Action:
    """Return an `action` event as an `Action`, whatever its fields hold."""
    args, asked, reason = event.get("args"), event.get("asked"), event.get("reason")
    firing = event.get("firing")
    return Action(
        id=str(event.get("id", "")),
        action=str(event.get("action", "")),
        args=args if isinstance(args, dict) else {},
        actor=str(event.get("actor", "")),
        step=event["step"],
        outcome=str(event.get("outcome", "")),
        reason="" if reason is None else str(reason),
        time=event["time"],
        asked=asked if is_number(asked) else None,
        index=index,
        firing=firing if is_count(firing) else 0,
    )


def find(name: object) -> ActionType | None:
    """Return the action of a name that comes from outside; `None` when there is none."""
    return ACTIONS[name] if isinstance(name, str) and name in ACTIONS else None


def changes_state(name: object) -> bool:
    """Say whether an action of this name, which may be anything, changes the further course of the training."""
    kind = find(name)
    return kind is not None and kind.changes_state


def loop_action(name: object) -> ActionType:
    """Return the action of that name that a loop can take.

    Raises:
        RefusedError: There is none.
    """
    kind = find(name)
    if kind is None or kind.done_by != "loop":
        hint = nearest(str(name)[:80], loop_actions())
        raise RefusedError(f"There is no action {short(name)} that a loop takes.", hint=hint)
    return kind


def rule_actions() -> list[str]:
    """Return the names of the actions that a rule may do."""
    return [name for name in ACTIONS if ACTIONS[name].for_rules]


def loop_actions() -> list[str]:
    """Return the names of the actions that a loop takes as commands."""
    return [name for name in ACTIONS if ACTIONS[name].done_by == "loop"]


def scripted_actions() -> list[str]:
    """Return the names of the actions that a replay takes from its script alone."""
    return [name for name in ACTIONS if ACTIONS[name].scripted]


def recordable(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a refused action as the record keeps them: what is long or deep is shortened."""
    return {str(name)[:80]: _recordable(value) for name, value in list(args.items())[:50]}


def _recordable(value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else short(value)
    if isinstance(value, list) and len(value) <= 50 and depth < 4:
        return [_recordable(item, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) <= 50 and depth < 4:
        return {str(name)[:80]: _recordable(item, depth + 1) for name, item in value.items()}
    return value[:MAX_RECORDED] if isinstance(value, str) else short(value)


# How actions are worded


def words(action: str, args: Mapping[str, Any]) -> str:
    """Return an action and its arguments as a person would write them: "lr=0.001", "rewind to 300".

    Args:
        action: Its name; what is not an action is worded too, since a record may hold anything.
        args: Its arguments, in a command, a rule or a record; they may be anything.
    """
    kind = find(action)
    return _plain_words(action, args) if kind is None or kind.words is None else kind.words(args)


def _plain_words(action: str, args: Mapping[str, Any]) -> str:
    return " ".join([action, *(f"{name}={_value(value)}" for name, value in args.items())])


def _value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _set_words(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in args.items()) or "set"


def _scale_words(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} times {_value(value)}" for name, value in args.items()) or "scale"


def _patterns_words(action: str) -> Words:
    def worded(args: Mapping[str, Any]) -> str:
        patterns = args.get("patterns")
        return f"{action} {', '.join(map(str, patterns))}" if isinstance(patterns, list) else action

    return worded


def _rewind_words(args: Mapping[str, Any]) -> str:
    if args.get("steps") is not None:  # a rule's
        return f"rewind by {_value(args['steps'])} steps"
    to = args.get("to", args.get("step"))
    return "rewind" if to is None else f"rewind to {_value(to)}"


def _rule_words(args: Mapping[str, Any]) -> str:
    changed = "set" if "when" in args else "on" if args.get("on") is True else "off"
    return f"rule {args.get('name', '?')} {changed}"


def _sample_words(args: Mapping[str, Any]) -> str:
    return f"sample {_value(args.get('prompt', ''))!r}"


# The table

ACTIONS: Registry[ActionType] = Registry("action")


def declare(kind: ActionType) -> ActionType:
    """Enter an action into the table, and return it."""
    return ACTIONS.register(kind.name)(kind)


_PATTERNS = Argument(name="patterns", kind="patterns")

declare(ActionType(name="pause", for_rules=True, past="paused", example="pause"))
declare(ActionType(name="resume", past="resumed", example="resume"))
declare(
    ActionType(
        name="stop",
        optional=(Argument(name="reason", kind="text"),),
        for_rules=True,
        past="stopped",
        example="stop",
        words=lambda _: "stop",
    )
)
declare(ActionType(name="save", for_rules=True, may_fail=True, past="saved", example="save"))
declare(ActionType(name="evaluate", for_rules=True, may_fail=True, past="evaluated", example="evaluate"))
declare(
    ActionType(
        name="sample",
        optional=(
            Argument(name="prompt", kind="text"),
            Argument(name="max_new_tokens", kind="int", low=1, high=MAX_NEW_TOKENS),
        ),
        for_rules=True,
        may_fail=True,
        past="sampled",
        example='sample "def add(a, b):"',
        words=_sample_words,
    )
)
declare(
    ActionType(
        name="profile",
        optional=(Argument(name="steps", kind="int", low=1, high=20),),
        may_fail=True,
        past="profiled",
        example="profile steps=3",
    )
)
declare(
    ActionType(
        name="set",
        takes_settings=True,
        for_rules=True,
        changes_state=True,
        scripted=True,
        example="set lr=1e-3 clip=0.5",
        words=_set_words,
    )
)
declare(ActionType(name="scale", takes_settings=True, done_by="rule", for_rules=True, words=_scale_words))
for _name in ("freeze", "unfreeze"):
    declare(
        ActionType(
            name=_name,
            required=(_PATTERNS,),
            for_rules=True,
            changes_state=True,
            scripted=True,
            example=f'{_name} "embedding.*"',
            words=_patterns_words(_name),
        )
    )
declare(
    ActionType(
        name="rewind",
        required=(Argument(name="step", kind="int", low=0),),
        for_rules=True,
        rule_arguments=(Argument(name="steps", kind="int", low=1),),
        changes_state=True,
        scripted=True,
        example="rewind 300",
        words=_rewind_words,
    )
)
declare(
    ActionType(
        name="rule",
        required=(Argument(name="name", kind="text"),),
        optional=(
            Argument(name="on", kind="flag"),
            Argument(name="when", kind="text"),
            Argument(name="do", kind="list"),
            Argument(name="cooldown", kind="int", low=0, high=10**9),
            Argument(name="limit", kind="int", low=1, high=10**9),
        ),
        scripted=True,
        may_fail=True,
        example="rule spike on=false",
        words=_rule_words,
    )
)
declare(ActionType(name="start_again", done_by="launcher", words=lambda _: "resume"))
declare(
    ActionType(
        name="fork",
        required=(Argument(name="name", kind="text"),),
        optional=(Argument(name="step", kind="int", low=0), Argument(name="changes", kind="values")),
        done_by="launcher",
        example="fork warmer step=300 lr=2e-3",
        words=lambda args: f"fork {args.get('name', '?')}",
    )
)
declare(ActionType(name="replay", done_by="replay"))
