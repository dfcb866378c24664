"""The one loop. It reads commands and writes events in the run directory, and knows nothing of who watches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nbllm.core.allocator import kept_memory
from nbllm.core.errors import RefusedError, RunError
from nbllm.core.seeding import derive
from nbllm.data.loader import BatchSource
from nbllm.inference import SamplingConfig, generate
from nbllm.lm import load
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.commands import CommandInbox
from nbllm.runs.events import EventReader
from nbllm.runs.lock import TrainerLock
from nbllm.runs.store import read_record
from nbllm.runs.timeline import Timeline
from nbllm.training.config import TrainConfig
from nbllm.training.diagnosis import NOTHING, first_bad_module, weights_are_finite
from nbllm.training.journal import Journal
from nbllm.training.optim import Optimizer
from nbllm.training.precision import DTYPES
from nbllm.training.state import TrainState, read_model, weights_digest, write_model
from nbllm.training.steering import Recorded, Steering
from nbllm.training.step import Stepper
from nbllm.training.validation import Validation, open_store

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.checkpoint import CheckpointInfo

POLL_SECONDS = 0.02  # how often a paused run looks for commands
SAVE_SECONDS = 0.5  # how often a full disk is tried again at the end
MAX_SAMPLE = 4096  # tokens: while a sample is made nothing else is heard


class Trainer:
    """Trains the model of one run directory, from its newest good checkpoint to its last step.

    Args:
        path: The run directory.
        where: "thread" or "process", for the record.
        publish_to: A model that is given the new weights at each checkpoint and at the end, or `None`.

    Raises:
        RunError: Another trainer has this run, or no checkpoint of it is good.
    """

    state: TrainState

    def __init__(self, path: Path, *, where: str, publish_to: LM | None = None) -> None:
        self.path = path
        self.where = where
        self.publish_to = publish_to
        self.record = read_record(path)
        self.config = TrainConfig.from_dict(self.record["config"])
        self.journal = Journal(path)
        self.inbox = CommandInbox(path)
        self._lock = TrainerLock(path)
        self._claimed = False
        self._saved: TrainState | None = None
        self._restored = False
        self.exit_reason: str | None = None  # set from outside: end at the next step boundary

    def run(self) -> None:
        """Train to the end, or until stopped. Whatever happens is an event.

        Raises:
            Exception: What made the run fail, after it was recorded.
        """
        self.claim()
        try:
            with kept_memory():
                self._start()
                self._finish(*self._loop())
        except BaseException as error:
            self.journal.fail(error, step=self.state.step if self._restored else 0)
            raise
        finally:
            self.journal.close()
            self._lock.release()

    def claim(self, patience: float = 0.0) -> None:
        """Make this trainer the run's own; whoever starts a thread calls this first, to hear the error.

        Args:
            patience: Seconds to wait for another to let go.

        Raises:
            RunError: Somebody else trains the run, or its folder cannot be written.
        """
        if self._claimed:
            return
        self._lock.timeout = patience
        self._lock.acquire()
        try:
            self.journal.open()
        except BaseException:
            self._lock.release()
            raise
        self._claimed = True

    # -- what steering may ask for ------------------------------------------------------------------------------

    def emit(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        """Record an event at this step."""
        self.journal.emit(kind, step=self.state.step if step is None else step, **fields)

    def set_values(self, values: dict[str, Any]) -> None:
        """Change settings from the next step on."""
        self._change(values={**self.state.values, **values})

    def set_frozen(self, patterns: tuple[str, ...]) -> None:
        """Freeze just the parameters that match `patterns`.

        Raises:
            RefusedError: Nothing would be left to train.
        """
        self.optimizer.freeze(patterns)
        if not any(parameter.requires_grad for parameter in self.optimizer.parameters.values()):
            self.optimizer.freeze(self.state.frozen)
            raise RefusedError("nothing would be left to train")
        self._change(frozen=patterns)

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one; a full disk is a warning, not the end.

        Raises:
            RefusedError: The weights are not finite, or the disk did not take them.
        """
        self.steering.repeat_due()  # a checkpoint holds what was recorded up to its step
        if self._saved == self.state:
            return
        if not weights_are_finite(self.optimizer.masters):
            raise RefusedError("the weights are not finite; the last checkpoint is kept instead")
        began = time.perf_counter()
        try:
            info = checkpoints.save(
                self.path,
                self.state.step,
                lambda folder: write_model(folder, self.lm, self.optimizer),
                {**self.state.to_dict(), "num_actions": self.num_actions},
            )
        except OSError as error:
            raise RefusedError(f"the checkpoint could not be written: {error.strerror or error}") from error
        self._saved, self._base = self.state, info
        self.emit("checkpoint", path=info.name, bytes=info.bytes, seconds=time.perf_counter() - began)
        checkpoints.prune(self.path, keep=self.config.keep_checkpoints)
        self.publish()

    def save_or_warn(self) -> None:
        """Write a checkpoint; if that cannot be done, say so and go on."""
        try:
            self.save()
        except RefusedError as error:
            self.emit("warning", text=error.what)

    def validate(self) -> None:
        """Measure the loss on held-out text.

        Raises:
            RefusedError: The run was given none.
        """
        if self.validation is None:
            raise RefusedError("this run was given no validation text")
        measured: dict[str, Any] = self.validation.measure(self.lm.model, self._device)
        self.emit("evaluation", **measured)

    def sample(self, prompt: str = "", max_new_tokens: int | None = None, **asked: Any) -> None:
        """Write a sample that continues `prompt`; its randomness depends on seed and step alone."""
        seed = derive(self.config.seed, "sample", self.state.step, prompt) % 2**31
        sampling = SamplingConfig(
            max_new_tokens=min(max_new_tokens or self.config.sample_tokens, MAX_SAMPLE),
            temperature=0.8,
            top_p=0.95,
            seed=seed,
            overflow="slide",
        )
        text = generate(
            self.lm.model,
            self.lm.tokenizer,
            prompt,
            config=sampling,
            should_stop=lambda: self.exit_reason is not None,
        )
        self.emit("sample", prompt=prompt, text=str(text), seed=seed, **{"actor": "loop", **asked})

    def rewind(self, step: int) -> dict[str, Any]:
        """Go back to the newest checkpoint at or before `step`: weights, optimizer, data, settings, all.

        Raises:
            RefusedError: There is none, or it is damaged.
        """
        on_line = self._timeline().on_line
        target, problems = checkpoints.newest_good(self.path, lambda c: c.step <= step and on_line(c))
        for problem in problems:
            self.emit("warning", text=problem)
        if target is None:
            raise RefusedError(f"there is no good checkpoint at or before step {step}")
        self._restore(target)
        return {"to": target.step, "keep": target.num_actions, "asked": step}

    def publish(self, *, wait: bool = False) -> None:
        """Give the new weights to the model that the person holds; while it is in use, skip that, or `wait`."""
        if self.publish_to is None or not weights_are_finite(self.optimizer.masters):
            return
        if not self.publish_to.lock.acquire(blocking=wait):
            return
        try:
            with torch.no_grad():
                for name, parameter in self.publish_to.model.named_parameters():
                    parameter.copy_(self.optimizer.masters[name])
        finally:
            self.publish_to.lock.release()

    # -- the loop -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        choices = self.record["choices"]
        torch.set_num_threads(choices["num_threads"])
        self._device = choices["device"]
        timeline = self._timeline()
        newest, problems = checkpoints.newest_good(self.path, timeline.on_line)
        if newest is None:
            raise RunError(
                "No checkpoint of this run is good.", where=self.path, mend="; ".join(problems) or None
            )
        self.lm = load(newest.path)
        self.lm.model.attention_backend = choices["attention"]
        self.lm.model.to(self._device)
        self.lm.model.train()
        self.optimizer = Optimizer(self.lm.model, dtype=DTYPES[choices["precision"]], eps=self.config.eps)
        source = BatchSource(
            open_store(self.record["data"]["train"]),
            batch_size=self.config.batch_size,
            sequence_length=self.config.sequence_length,
            seed=self.config.seed,
        )
        self.stepper = Stepper(self.lm.model, self.optimizer, source, self.config, self._device)
        self.validation = Validation.of(self.record["data"]["validation"], self.config)
        self._restore(newest)
        self.num_actions = timeline.num_actions
        self.steering = Steering(
            self,
            to_repeat=[
                Recorded(a.step, a.action, a.args, a.actor)
                for a in timeline.pending_after(newest.num_actions, newest.step)
            ],
            script=self._script(timeline.num_actions),
        )
        self.journal.start(step=newest.step, where=self.where, checkpoint=newest.name, choices=choices)
        for problem in problems:
            self.emit("warning", text=problem)

    def _script(self, num_actions: int) -> list[Recorded] | None:
        """A replay's actions that are not yet in its own log."""
        replay = self.record.get("replay")
        if replay is None:
            return None
        return [Recorded(**entry) for entry in replay["script"]][num_actions:]

    def _loop(self) -> tuple[str, str | None]:
        while True:
            self.steering.at_boundary()
            self._wait_while_paused()
            if self.exit_reason or self.steering.stop_reason:
                return "stopped", self.exit_reason or self.steering.stop_reason
            if self.state.step >= self.state.values["steps"]:
                return "finished", None
            self._step()
            self._at_intervals()
            if self.state.bad_steps >= self.config.max_bad_steps:
                return "failed", self._diagnose()

    def _wait_while_paused(self) -> None:
        while (self.steering.paused or not self.journal.flush()) and not self.exit_reason:
            if self.steering.stop_reason:
                return
            time.sleep(POLL_SECONDS)
            self.steering.at_boundary()

    def _step(self) -> None:
        result = self.stepper.step(self.state)
        self.state = result.state
        self.journal.step(result)
        if not result.good:
            text = f"step skipped: loss {result.loss}, gradient norm {result.grad_norm}"
            self.emit("warning", text=f"{text} ({self.state.bad_steps} in a row)")

    def _at_intervals(self) -> None:
        def due(interval: int) -> bool:
            return interval > 0 and self.state.step % interval == 0

        last = self.state.step >= self.state.values["steps"]
        if self.state.bad_steps:
            return
        if self.validation is not None and (last or due(self.config.validation_interval)):
            self.validate()
        if self.config.sample_interval and (last or due(self.config.sample_interval)):
            for prompt in self.config.sample_prompts:
                self.sample(prompt)
        if due(self.config.checkpoint_interval) and not last:
            self.save_or_warn()

    def _finish(self, end: str, reason: str | None) -> None:
        if end == "failed":
            self._restore(self._base)  # the weights that are left are those of the last good checkpoint
        else:
            problem = self._save_at_end(patient=end == "finished")
            if problem is not None:  # not "finished": what is not saved can be taken up again
                end, reason = "stopped", f"{reason or 'all steps are taken'}, but {problem}"
        self.publish(wait=True)
        self.steering.refuse_rest(f"the run has {end}")
        self.journal.end(
            step=self.state.step, state=end, reason=reason, digest=weights_digest(self._base.path)
        )

    def _save_at_end(self, *, patient: bool) -> str | None:
        """Write the last checkpoint; `patient`, hold the run until the disk takes it. Return what prevented it."""
        warned = False
        while True:
            try:
                self.save()
            except RefusedError as error:
                if not warned:
                    self.emit("warning", text=error.what)
                warned = True
                asked = self.exit_reason or self.steering.stop_reason
                if not patient or asked or not weights_are_finite(self.optimizer.masters):
                    return error.what
                time.sleep(SAVE_SECONDS)
                self.steering.at_boundary()
            else:
                return None

    def _restore(self, info: CheckpointInfo) -> None:
        read_model(info.path, self.lm, self.optimizer)
        self.state = TrainState.read(info.path)
        self.optimizer.freeze(self.state.frozen)
        self._saved, self._base, self._restored = self.state, info, True

    def _diagnose(self) -> str:
        culprit = NOTHING
        passes = self.state.values["accumulation"]
        for count in range(passes, 0, -1):
            batch = self.stepper.batch(self.state.position - count * self.config.batch_size)
            culprit = first_bad_module(self.lm.model, *batch)
            if culprit != NOTHING:
                break
        return f"{self.state.bad_steps} steps in a row were not finite; the first to go bad is {culprit}"

    def _timeline(self) -> Timeline:
        return Timeline(EventReader(self.path).poll())

    def _change(self, **changes: Any) -> None:
        self.state = self.state.replace(**changes)
