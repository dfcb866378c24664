"""`nb.follow`: the panel, the controls, the rules and the record for a training loop of the user's own."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

from nbllm.core.config import PlainConfig, check_positive
from nbllm.core.errors import RunError, UserError
from nbllm.core.io import expand_user
from nbllm.core.showing import show
from nbllm.core.signature import settings_of, takes
from nbllm.runs.rulebook import check_rules
from nbllm.runs.rules import Rule
from nbllm.runs.run import Run
from nbllm.runs.settings import Setting, declared_settings
from nbllm.runs.store import RECORD, check_name, create, read_record
from nbllm.training.external_session import ExternalSession, Hooks, Module
from nbllm.training.fork import new_record, say_if_renamed
from nbllm.training.steering_decisions import EndRun

Batch = TypeVar("Batch")
STEPS = Setting(name="steps", kind="int", low=1, high=10**9, unit="steps", help="Steps in all.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FollowConfig(PlainConfig):
    """What `nb.follow` does on its own.

    Args:
        steps: Steps in all, which `run.set(steps=...)` can change; `None`: until the loop is left.
        checkpoint_interval: Steps between checkpoints; 0 for the first and last only.
        keep_checkpoints: How many checkpoints are kept; the first one always is.
        evaluation_interval: Steps between calls of `evaluate`, and at the end; 0 for when it is asked for.
        rules: What the run does on its own when a condition holds: `nb.rules`.
    """

    steps: int | None = None
    checkpoint_interval: int = 100
    keep_checkpoints: int = 20
    evaluation_interval: int = 0
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "keep_checkpoints")
        if self.steps is not None:
            object.__setattr__(self, "steps", STEPS.check(self.steps))
        for name in ("checkpoint_interval", "evaluation_interval"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{name} must be at least 0, not {getattr(self, name)}.", where="FollowConfig"
                )
        object.__setattr__(self, "rules", check_rules(self.rules))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return {**super().to_dict(), "rules": [rule.to_dict() for rule in self.rules]}


@takes(settings_of(FollowConfig), FollowConfig)
def follow(  # noqa: PLR0913 (each is one thing that the loop can be asked to do)
    name: str,
    *,
    settings: Mapping[str, float | Setting] | None = None,
    modules: Mapping[str, Module] | None = None,
    save: Callable[[], Any] | None = None,
    restore: Callable[[Any], Any] | None = None,
    evaluate: Callable[[], Mapping[str, Any]] | None = None,
    sample: Callable[..., str] | None = None,
    folder: str | Path = "runs",
    resume: bool = False,
    **config: Any,
) -> Loop:
    """Make a run of a training loop of your own: seen, steered and recorded like every other.

        loop = nb.follow("mine", steps=1000, settings={"lr": 1e-3}, modules={"model": model, "optimizer": optimizer})
        with loop:  # in a notebook its panel appears here, or where `loop` ends a cell before
            for step in loop:
                loss = train_step(step, lr=loop.settings["lr"])
                loop.log(loss=loss, tokens=4096)

    or, over the batches of a data loader:

        with nb.follow("mine", steps=3 * len(loader), modules={"model": model, "optimizer": optimizer}) as loop:
            for epoch in range(3):
                for batch in loop.over(loader):
                    loop.log(loss=train_step(batch))

    `step` counts the steps done, from 0. Each iteration is one step. Between two of them the run can be paused, stopped
    and rewound; after a rewind `step` is smaller than before. Whatever depends only on `step` and the random state of
    torch, NumPy and Python is repeated exactly; the batches of `over` go on instead.

    The `with` sees how the loop is left: an error is recorded as the run's failure. Without it, a loop that is left
    early is recorded as stopped, whatever the reason.

    Args:
        name: The run's name.
        settings: What may change while it runs, each with its first value, or as a `Setting` with a `default`. From the
            first value follow kind and range: a value of 0 or more cannot become negative, an int stays an int.
        modules: Objects with `state_dict` and `load_state_dict`, by name; they are saved, and restored by a rewind.
        save: Returns anything else to be saved: tensors, numbers, texts, and dicts and lists of them.
        restore: Takes back what `save` returned, tensors on the CPU.
        evaluate: Measures on held-out data and returns numbers by name, such as "loss" or "bits_per_byte".
        sample: Continues a prompt; it may take `max_new_tokens` too.
        folder: Where runs are kept.
        resume: Go on with the run of this name, where there is one, from its newest checkpoint, with its settings and
            rules; one that has finished is restored, and its loop has no more steps. Otherwise a new run is made; a
            name that is taken gets a number.
        config: Fields of `FollowConfig`: steps, checkpoint_interval, keep_checkpoints, evaluation_interval, rules.

    Raises:
        UserError: Something given cannot be used.
        RunError: The folder cannot be written, or the run cannot be resumed.
    """
    chosen = FollowConfig.from_dict(config)
    hooks = Hooks(modules=modules or {}, save=save, restore=restore, evaluate=evaluate, sample=sample)
    if restore is not None and save is None:
        raise UserError("There is a restore=, but no save= whose state it could take.")
    declared, values = _declared(settings or {}, chosen)
    place = expand_user(folder) / check_name(name)
    again = resume and (place / RECORD).exists()
    if again:
        _check_resumable(place, declared, hooks)
    else:
        place = create(folder, name, _record(chosen, declared, values, hooks))
        say_if_renamed(name, place)
    session = ExternalSession(place.resolve(), declared, hooks, {**chosen.to_dict(), **values})
    return Loop(session, resume=again)


class Loop:
    """A training loop that a run follows; `nb.follow` makes it. Iterate over it once, or `over` batches in epochs.

    Attributes:
        shown: Whether a notebook has shown its panel, which the loop else does when it begins.
    """

    def __init__(self, session: ExternalSession, *, resume: bool) -> None:
        self._session = session
        self._resume = resume
        self._run = Run(session.path)
        self._begun = self._ended = self._watched = False
        self.shown = False
        self._ran_out = False  # whether the batches have, after the last step

    @property
    def run(self) -> Run:
        """The handle on the run."""
        return self._run

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings as they are now; read them again in every step."""
        return MappingProxyType(dict(self._session.values))

    @property
    def step(self) -> int:
        """Steps done."""
        return self._session.step

    def log(self, **metrics: Any) -> None:
        """Report numbers of the step under way, in one call or several.

        Args:
            **metrics: "loss", "lr", "grad_norm", and any others: numbers of Python, NumPy or torch. "tokens" is how
                many tokens this step trained on. A run records some sixty names; metrics of further names are left out,
                with a warning.

        Raises:
            UserError: A value is not a number, or no step is under way.
        """
        self._session.log(metrics)

    def __iter__(self) -> Iterator[int]:
        if self._ended and self._watched:  # a loop over epochs goes on for nothing when its run was stopped
            return
        self._begin()
        for step, _ in self._steps(itertools.repeat(None)):
            yield step

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches of an epoch, each of which is one step; no more once the run has ended.

        The run has finished when the `with` is left after the batches of the last epoch, or after its `steps`.

        Args:
            batches: A data loader, or anything else that can be iterated over.

        Raises:
            UserError: It is not used inside `with loop:`, which alone tells when the last epoch is over.
        """
        if not self._watched:
            raise UserError(
                "loop.over(batches) is used inside `with loop:`, which tells when the last epoch is over.",
                hint="with loop:\n    for epoch in range(3):\n        for batch in loop.over(loader): ...",
            )
        return iter(()) if self._ended else (batch for _, batch in self._steps(batches))

    def _steps(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """Yield the steps done so far and a batch, for each step."""
        try:
            for batch in batches:
                if (end := self._session.go_on()) is not None:
                    self._session.finish(end)
                    self._end()
                    return
                self._ran_out = False
                began = time.perf_counter()
                yield self._session.step, batch
                self._session.take_step(time.perf_counter() - began)
            self._ran_out = True
        except GeneratorExit:
            if not self._watched:  # else `__exit__` will know why
                self._leave(None)
            raise
        except BaseException as error:
            self._leave(error)
            raise

    def __enter__(self) -> Self:
        self._begin()
        self._watched = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._ran_out and not self._ended:
                self._finish()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._leave(error)
            self._watched = False

    def __repr__(self) -> str:
        return f"Loop of {self._run!r}"

    def _repr_html_(self) -> str:
        return self._run._repr_html_()

    def _begin(self) -> None:
        if self._ended:
            raise RunError(
                f"The loop of {self._run.name!r} has ended.",
                hint=f"nb.follow({self._run.name!r}, resume=True, ...) goes on with the run.",
            )
        if self._begun:
            return
        try:
            self._session.start(resume=self._resume)
        except BaseException as error:
            self._leave(error)
            raise
        self._begun = True
        if not self.shown:
            show(self)

    def _finish(self) -> None:
        """End the run after the batches of the last epoch."""
        end = self._session.end_here()
        if end is not None:
            self._session.finish(end)
            self._end()

    def _leave(self, error: BaseException | None) -> None:
        """Record that the loop was left before its end; without effect when it has ended."""
        if self._ended:
            return
        session = self._session
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            if self._begun and (error is None or isinstance(error, KeyboardInterrupt)):
                how = "interrupted" if isinstance(error, KeyboardInterrupt) else "left"
                reason = f"the loop was {how} in the step after {session.step}"
                if not self._watched:
                    reason += "; only inside `with loop:` it is seen whether by an error"
                session.record_end(EndRun(state="stopped", reason=reason))
            elif error is not None and session.is_claimed:
                session.fail(error)

    def _end(self) -> None:
        self._ended = True
        if self._session.is_claimed:
            self._session.release()


def _declared(
    settings: Mapping[str, float | Setting], config: FollowConfig
) -> tuple[list[Setting], dict[str, Any]]:
    """Return the settings and their first values."""
    declared = [] if config.steps is None else [STEPS]
    values: dict[str, Any] = {} if config.steps is None else {"steps": config.steps}
    taken = {field.name for field in dataclasses.fields(config)}
    for name, value in settings.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            raise UserError(f"{name!r} cannot be the name of a setting.", hint="Use another name.")
        setting = value if isinstance(value, Setting) else _inferred(name, value)
        if setting.name != name or setting.default is None or setting.kind == "patterns":
            raise UserError(
                f"The setting {name!r} needs its own name, a number's kind, and a default.",
                hint=f"nb.runs.Setting(name={name!r}, default=0.1, low=0)",
            )
        declared.append(setting)
        values[name] = setting.check(setting.default)
    return declared, values


def _inferred(name: str, value: Any) -> Setting:
    """Return the setting that a first value suggests."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"The setting {name!r} must be a number or a Setting, not {str(value)[:40]!r}.")
    kind = "int" if isinstance(value, int) else "float"
    low = None if value < 0 else 1 if kind == "int" and value >= 1 else 0
    return Setting(name=name, kind=kind, low=low, default=value)


def _record(
    config: FollowConfig, declared: Sequence[Setting], values: Mapping[str, Any], hooks: Hooks
) -> dict[str, Any]:
    return new_record(
        config={**config.to_dict(), **values},
        settings=[setting.to_dict() for setting in declared],
        cannot=hooks.cannot(),
        where="loop",
    )


def _check_resumable(path: Path, declared: Sequence[Setting], hooks: Hooks) -> None:
    """Check that the run at `path` is one of a followed loop with the same settings.

    Raises:
        RunError: It is not.
    """
    record = read_record(path)
    if record.get("where") != "loop":
        raise RunError("This run was not made by nb.follow.", where=path, hint="Choose another name.")
    before = {setting.name for setting in declared_settings(record)}
    if before != {setting.name for setting in declared}:
        raise RunError(
            f"The run has the settings {', '.join(sorted(before)) or 'none'}, the script has others.",
            where=path,
            hint="Declare the same, or choose another name.",
        )
    if "rewind" in hooks.cannot():
        raise RunError(f"The run cannot be taken up again: {hooks.cannot()['rewind']}.", where=path)
