"""The session of a training loop of the user's own, and the functions it gave to save, restore, evaluate and sample."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from nbllm.core.errors import RunError, UserError
from nbllm.nn.compiled import load_state_by_name, state_by_name
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.commands import discard
from nbllm.runs.settings import Setting
from nbllm.training.session import Session
from nbllm.training.steering_decisions import DoWork, EndRun
from nbllm.training.train_state import TrainState
from nbllm.training.tree import read_tree, write_tree

NO_METRICS = ("step", "time", "kind")  # what every event has
OURS = ("memory", "seconds", "tokens_per_second")  # what the loop need not report
NOT_FINITE = "the loss is not finite; the last checkpoint is kept instead"


class Module(Protocol):
    """An object whose state can be saved and restored: a model, an optimizer, a schedule, a data loader."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Take a state back."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a loop can be asked to do; see `follow`."""

    modules: Mapping[str, Module] = dataclasses.field(default_factory=dict)
    save: Callable[[], Any] | None = None
    restore: Callable[[Any], Any] | None = None
    evaluate: Callable[[], Mapping[str, Any]] | None = None
    sample: Callable[..., str] | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        for name in ("save", "restore", "evaluate", "sample"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise UserError(f"{name} must be a function, not {value!r}.")
        if not isinstance(self.modules, Mapping):
            raise UserError(
                "modules must be a dict.", hint='modules={"model": model, "optimizer": optimizer}'
            )
        for name, module in self.modules.items():
            if not isinstance(name, str) or not hasattr(module, "state_dict"):
                raise UserError(f"modules[{name!r}] has no state_dict().")

    def cannot(self) -> dict[str, str]:
        """Return what the loop cannot do, with the reasons."""
        again = "the code that trains it is not here: run its script again, with resume=True"
        reasons = {
            "start_again": again,
            "fork": "the code that trains it is not here: start another run in its script",
            "replay": "the code that trains it is not here",
            "freeze": "it is the loop that knows which parts it trains",
            "unfreeze": "it is the loop that knows which parts it trains",
        }
        if not self.modules and self.save is None:
            reasons["save"] = "the loop gave nothing to save: modules=, or save="
            reasons["rewind"] = "the loop gave nothing to restore: modules=, or save= and restore="
        elif self.save is not None and self.restore is None:
            reasons["rewind"] = "the loop gave save= but no restore="
        if "rewind" in reasons:
            reasons["start_again"] = f"it cannot be taken up again: {reasons['rewind']}"
        if self.evaluate is None:
            reasons["evaluate"] = "the loop gave no evaluate="
        if self.sample is None:
            reasons["sample"] = "the loop gave no sample="
        return reasons


class ExternalSession(Session):
    """Follows a training loop of the user's own.

    Args:
        path: The run directory.
        settings: What may change while it runs.
        hooks: What it can be asked to do.
        config: `checkpoint_interval`, `evaluation_interval`, `keep_checkpoints`, and the settings' first values.
    """

    def __init__(
        self, path: Path, settings: Sequence[Setting], hooks: Hooks, config: Mapping[str, Any]
    ) -> None:
        super().__init__(path, where="loop")
        self.settings = settings
        self.hooks = hooks
        self.config = config
        self.keep_checkpoints = config["keep_checkpoints"]
        self.state = TrainState(values={setting.name: config[setting.name] for setting in settings})
        self.logged: dict[str, float] | None = None  # of the step under way; `None` between steps
        self._loss_is_finite = True

    @property
    def is_claimed(self) -> bool:
        """Whether the run is this session's own."""
        return self._claimed

    # -- what may be asked of it ---------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """Write the states of the modules, what `save` returns, and the random state of all three sources."""
        tree: dict[str, Any] = {name: state_by_name(module) for name, module in self.hooks.modules.items()}
        own = None if self.hooks.save is None else self.hooks.save()
        write_tree(folder, {"modules": tree, "own": own, "random": _random_state()})

    def read(self, folder: Path) -> None:
        """Put back what `write` wrote."""
        tree = read_tree(folder)
        for name, module in self.hooks.modules.items():
            if name not in tree["modules"]:
                raise RunError(f"The checkpoint holds no {name!r}.", where=folder)
            load_state_by_name(module, tree["modules"][name])
        if self.hooks.restore is not None:
            self.hooks.restore(tree["own"])
        _set_random_state(tree["random"])

    def why_not_save(self) -> str | None:
        """Return a reason where the loss of the last step was not finite."""
        return None if self._loss_is_finite else NOT_FINITE

    def validate(self) -> None:
        """Measure, with the loop's own function."""
        assert self.hooks.evaluate is not None
        with _random_state_kept():
            measured = self.hooks.evaluate()
        numbers: dict[str, Any] = numbers_of(measured, "evaluate() returned")
        self.emit("evaluation", **numbers)

    def sample(self, prompt: str = "", max_new_tokens: int | None = None, **asked: Any) -> None:
        """Let the loop's own function continue a prompt."""
        function = self.hooks.sample
        assert function is not None
        length = {"max_new_tokens": max_new_tokens} if max_new_tokens and _takes_length(function) else {}
        with _random_state_kept():
            text = function(prompt, **length)
        self.emit("sample", prompt=prompt, text=str(text), **{"actor": "loop", **asked})

    # -- the loop -----------------------------------------------------------------------------------------------

    def start(self, *, resume: bool) -> None:
        """Start the run, or resume it from its newest good checkpoint."""
        self.claim()
        timeline = self.timeline()
        newest: CheckpointInfo | None = None
        problems: list[str] = []
        given = dict(self.values)
        if resume:
            discard(self.path)  # commands sent to a session that died are not for this one
            newest, problems = checkpoints.newest_good(self.path, timeline.on_branch)
        self.begin(timeline, newest, problems)
        if self.config["rules"] not in ([], self.record["config"].get("rules", [])):
            text = (
                "the rules are those of the run, which stay; the script has others: run.rule() changes them"
            )
            self.emit("warning", text=text)
        for name, value in given.items():
            if self.values[name] != value:
                text = f"{name} is {self.values[name]} in the run, which stays, and {value} in the script"
                self.emit("warning", text=text)
        if newest is None:
            self.save_or_warn()

    def go_on(self) -> EndRun | None:
        """Come to the safe point before a step; return how the run ends here, if it does."""
        end = self.boundary()
        if end is None:
            self.logged = {}
        return end

    def end_here(self) -> EndRun | None:
        """Return how a run ends whose loop has no more batches; `None` where it has taken too few steps."""
        return None if self.step < self.values.get("steps", 0) else EndRun(state="finished")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Take metrics of the step under way."""
        if self.logged is None:
            raise UserError(
                "log() reports numbers of a step, and no step is under way.",
                hint="Call it inside `for step in loop:`.",
            )
        for name in metrics:
            if name in OURS:
                raise UserError(f"{name!r} is recorded anyway.", hint="Report it under another name.")
        numbers = numbers_of(metrics, "log() was given")
        if not 0 <= numbers.get("tokens", 0) < math.inf:  # not with NaN either
            raise UserError(f"log() was given tokens={numbers['tokens']}, which is not a number of tokens.")
        self.logged.update(numbers)

    def take_step(self, seconds: float) -> None:
        """Record the step that the loop has taken, and do what is due after it."""
        metrics: dict[str, Any] = self.logged or {}
        self.logged = None
        tokens = metrics.pop("tokens", None)
        if tokens is not None:
            self.change(tokens=self.state.tokens + round(tokens))
            metrics |= {"tokens": self.state.tokens, "tokens_per_second": tokens / max(seconds, 1e-9)}
        if "lr" in self.values:
            metrics.setdefault("lr", self.values["lr"])
        self.change(step=self.step + 1, seconds=self.state.seconds + seconds)
        self._loss_is_finite = math.isfinite(metrics.get("loss", 0.0))
        self.emit("step", **metrics, memory=self.journal.memory, seconds=self.state.seconds)
        self.finish_step()

    def due(self) -> Iterator[DoWork]:
        """Yield the evaluation and the checkpoint that are due after this step."""
        last = self.step >= self.values.get("steps", math.inf)
        if self.hooks.evaluate is not None and self._due("evaluation_interval", last):
            yield DoWork(work="evaluate")
        if self._due("checkpoint_interval", False) and not last:
            yield DoWork(work="save")

    def restore(self, info: CheckpointInfo) -> None:
        """Go to a checkpoint."""
        super().restore(info)
        self._loss_is_finite = True

    def _due(self, interval: str, last: bool) -> bool:
        every = self.config[interval]
        return every > 0 and (last or self.step % every == 0)


def numbers_of(metrics: Mapping[str, Any], by: str) -> dict[str, float]:
    """Return metrics as numbers: of Python, NumPy or torch.

    Raises:
        UserError: A name is not a text or a value not a number.
    """
    if not isinstance(metrics, Mapping):
        raise UserError(f"{by} {str(metrics)[:40]!r}, not numbers by name.", hint='{"loss": 2.5}')
    found = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or name in NO_METRICS:
            raise UserError(f"{by} {name!r}, which cannot be the name of a metric.")
        try:
            number = value.item() if hasattr(value, "item") else value
        except (RuntimeError, ValueError):
            number = None  # a tensor of several numbers
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UserError(f"{by} {name!r} as {str(value)[:40]!r}, which is not a number.")
        try:
            float(number)
        except OverflowError:
            raise UserError(f"{by} {name!r} as a whole number that is too large.") from None
        found[name] = number
    return found


def _takes_length(function: Callable[..., Any]) -> bool:
    try:
        return "max_new_tokens" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # it is not written in Python
        return False


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the random state at the end, so that a measurement does not change what the loop draws next."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's random numbers."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the user's loop may draw from it)
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
