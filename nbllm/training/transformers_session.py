"""The session of transformers' Trainer: actions are carried out by the Trainer itself, through its control flags."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nbllm.core.errors import RefusedError
from nbllm.inference.text import encode_prompt
from nbllm.runs.settings import Setting
from nbllm.training.checkpoint_writer import Contents
from nbllm.training.decider import POLL_SECONDS, Decider
from nbllm.training.external_session import NO_METRICS
from nbllm.training.session import Session
from nbllm.training.steering_decisions import EndRun
from nbllm.training.train_state import TrainState

SETTINGS = (
    Setting(
        name="lr",
        low=0,
        low_open=True,
        high=10,
        help="Peak learning rate; the Trainer's schedule multiplies it.",
    ),
    Setting(
        name="clip", low=0, high=1e6, help="Largest norm of the gradient (max_grad_norm); 0: not clipped."
    ),
)
PICKLED = "training_args.bin"  # a pickle that nothing needs: not copied
NOT_METRICS = ("epoch", "total_flos", "runtime", "samples_per_second", "steps_per_second")


class TransformersSession(Session):
    """Follows a Trainer.

    Args:
        path: The run directory.
        args: The Trainer's arguments.
        state: The Trainer's state.
        control: The flags that tell the Trainer what to do.
        parts: Model, optimizer and schedule, as callbacks are given them.
        keep: How many checkpoints are kept.
    """

    settings = SETTINGS

    def __init__(
        self, path: Path, args: Any, state: Any, control: Any, parts: dict[str, Any], *, keep: int
    ) -> None:
        super().__init__(path, where="loop")
        self.keep_checkpoints = keep
        self.state = TrainState(
            step=state.global_step,
            values={"lr": args.learning_rate, "clip": args.max_grad_norm, "steps": state.max_steps},
        )
        self.back_to: Path | None = None  # where a rewind goes, until the Trainer has begun again
        self._take(args, state, control, parts)
        self._waits = False
        self._logs: dict[str, Any] | None = None  # of a step whose metrics are still to come
        self._last: dict[str, Any] = {}  # of the last step recorded
        self._began = time.perf_counter()

    def start(self) -> None:
        """Begin the run."""
        self.claim()
        self.begin(self.timeline(), None)

    def _take(self, args: Any, state: Any, control: Any, parts: dict[str, Any]) -> None:
        self._args, self._trainer_state, self._control, self._parts = args, state, control, parts

    # -- what may be asked of it ---------------------------------------------------------------------------------

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Raise `RefusedError` where the schedule has no rate that could be changed."""
        super().check_values(values)
        if "lr" not in values:
            return
        if not hasattr(self._schedule, "base_lrs"):
            raise RefusedError("the Trainer's schedule has no base rate to change")
        if self.values["lr"] == 0:
            raise RefusedError("the Trainer began with a rate of 0, which its schedule multiplies")

    def set_values(self, values: dict[str, Any]) -> None:
        """Change the learning rate in optimizer and schedule, and the Trainer's clipping."""
        if self.back_to is None:  # otherwise the Trainer is about to load its own, and `went_back` does this
            self._apply(self.values, values)
        super().set_values(values)

    @property
    def _schedule(self) -> Any:
        schedule = self._parts["lr_scheduler"]
        return getattr(schedule, "scheduler", schedule)  # accelerate wraps it

    def _apply(self, before: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        if "lr" in values and values["lr"] != before["lr"]:
            ratio = values["lr"] / before["lr"]
            for name in ("base_lrs", "_last_lr"):  # what it computes from, and what the Trainer logs
                if hasattr(self._schedule, name):
                    setattr(self._schedule, name, [rate * ratio for rate in getattr(self._schedule, name)])
            for group in self._parts["optimizer"].param_groups:
                for name in ("lr", "initial_lr"):
                    if name in group:
                        group[name] = group[name] * ratio
        if "clip" in values:
            self._args.max_grad_norm = values["clip"]

    def save(self, *, wait: bool = True) -> None:
        """Have the Trainer save after this step."""
        if self._saved == self.state:
            return
        if self._waits:
            raise RefusedError("the Trainer saves between steps: resume it first")
        self._control.should_save = True

    def validate(self) -> None:
        """Have the Trainer evaluate after this step."""
        if self._waits:
            raise RefusedError("the Trainer evaluates between steps: resume it first")
        self._control.should_evaluate = True

    def sample(self, prompt: str = "", max_new_tokens: int | None = None, **asked: Any) -> None:
        """Let the model continue a prompt, and leave the random state of the training as it was."""
        model, tokenizer = self._parts["model"], self._parts["processing_class"]
        was_training, devices = model.training, [model.device.index] if model.device.type == "cuda" else []
        start = encode_prompt(tokenizer, prompt)
        if not start:
            raise RefusedError("the prompt has no token")
        prompt_ids = torch.tensor([start], device=model.device)
        model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(self._args.seed + self.step)
                ids = model.generate(
                    input_ids=prompt_ids,
                    attention_mask=torch.ones_like(prompt_ids),
                    do_sample=True,
                    top_p=0.95,
                    temperature=0.8,
                    max_new_tokens=max_new_tokens or 64,
                    pad_token_id=_first(tokenizer.pad_token_id, tokenizer.eos_token_id),
                )
        finally:
            model.train(was_training)
        text = tokenizer.decode(ids[0, len(start) :])
        self.emit("sample", prompt=prompt, text=text, **{"actor": "loop", **asked})

    def write(self, folder: Path) -> None:
        """Never called: the Trainer writes its checkpoints, and `take_checkpoint` copies them."""
        raise AssertionError

    def read(self, folder: Path) -> None:
        """Have the Trainer end, for `RunCallback.follow` to begin it again from there."""
        self.back_to = folder
        self._control.should_training_stop = True
        self._control.should_save = self._control.should_evaluate = self._control.should_log = False

    # -- the Trainer's steps ------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Wait here while paused."""
        self._settle()
        if self.back_to is not None:
            return
        self._waits = True
        assert self.decider is not None  # a Trainer of one process
        while self.decider.is_held() and not self._goes_back():  # then it takes one more step, not recorded
            time.sleep(POLL_SECONDS)
            self.carry_out(Decider.requests)
        self._waits = False
        self._began = time.perf_counter()

    def after_step(self, *, logs_follow: bool) -> None:
        """A step is taken."""
        if self.back_to is not None:
            self._control.should_training_stop = True
            return
        seconds = time.perf_counter() - self._began
        self.change(step=self._trainer_state.global_step, seconds=self.state.seconds + seconds)
        rates = [group["lr"] for group in self._parts["optimizer"].param_groups]
        self._logs = {"lr": float(rates[0])} if rates else {}
        if self._trainer_state.num_input_tokens_seen:
            self._logs["tokens"] = self._trainer_state.num_input_tokens_seen
        if not logs_follow:
            self._settle()

    def take_logs(self, logs: dict[str, Any]) -> None:
        """Take the metrics of the step."""
        if self.back_to is not None:
            return
        numbers = _numbers(logs)
        if "learning_rate" in numbers:  # the one that the step was taken with
            numbers["lr"] = numbers.pop("learning_rate")
        if self._logs is not None:
            self._logs |= numbers
            self._settle()
        else:  # logged at the end of an epoch, after the step was recorded
            self._emit_step({**self._last, **numbers})

    def _settle(self) -> None:
        """Record the step that was taken, let the rules act, and obey."""
        if self._logs is None:
            return
        numbers, self._logs = self._logs, None
        self._emit_step(numbers)
        self.carry_out(Decider.rules)
        if not self._goes_back():
            self.carry_out(Decider.requests)
        if self._goes_back():
            return
        asked = self._asked_to_end()
        if asked is not None or self.step >= self._trainer_state.max_steps:
            self._control.should_training_stop = True
            self._control.should_save = asked is None or asked.save

    def _emit_step(self, numbers: dict[str, Any]) -> None:
        self._last = numbers
        self.emit("step", **numbers, memory=self.journal.memory, seconds=self.state.seconds)

    def _goes_back(self) -> bool:
        return self.back_to is not None

    def take_evaluation(self, metrics: dict[str, Any]) -> None:
        """Record what the Trainer measured."""
        if self.back_to is None:
            numbers: dict[str, Any] = {n.removeprefix("eval_"): v for n, v in _numbers(metrics).items()}
            self.emit("evaluation", **{n: v for n, v in numbers.items() if n not in NOT_METRICS})

    def take_checkpoint(self, folder: Path) -> None:
        """Copy what the Trainer saved into the run."""
        if self.back_to is not None or self._saved == self.state or not folder.is_dir():
            return

        def fill(aside: Path) -> None:
            for file in folder.iterdir():
                if file.is_file() and file.name != PICKLED:
                    shutil.copyfile(file, aside / file.name)

        try:
            self.store(Contents(fill))
        except RefusedError as error:
            self.emit("warning", text=error.what)

    def went_back(self, args: Any, state: Any, control: Any, parts: dict[str, Any]) -> None:
        """The Trainer has begun again where the rewind went."""
        assert self.back_to is not None
        assert state.global_step == self.step, (state.global_step, self.step)
        self._take(args, state, control, parts)
        self._apply(TrainState.read(self.back_to).values, self.values)
        self.back_to = self._logs = None

    def end(self) -> None:
        """Record the end of the training."""
        self._settle()
        if self.step >= self._trainer_state.max_steps:
            self.record_end(EndRun(state="finished"))
        else:
            self.record_end(self._asked_to_end() or EndRun(state="stopped", reason="the Trainer was stopped"))

    def _asked_to_end(self) -> EndRun | None:
        assert self.decider is not None  # a Trainer of one process
        return self.decider.asked_to_end()


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            if not isinstance(value, (str, bool)) and name not in NO_METRICS:
                found[name] = float(value)
    return found


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
