"""`RunCallback`: the panel, the controls, the rules and the record for transformers' Trainer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nbllm.core.errors import RunError, UserError
from nbllm.core.io import expand_user
from nbllm.core.showing import show
from nbllm.runs.rulebook import check_rules
from nbllm.runs.rules import Rule
from nbllm.runs.run import Run
from nbllm.runs.store import check_name, create
from nbllm.runs.summary import NATS
from nbllm.training.fork import new_record, say_if_renamed
from nbllm.training.steering_decisions import EndRun
from nbllm.training.transformers_session import SETTINGS, TransformersSession

OWN_CODE = "the code that trains it is not here"


class RunCallback(TrainerCallback):
    """Makes a run of what transformers' Trainer trains: seen, steered and recorded like every other.

        recorder = nb.RunCallback("mine")
        trainer = Trainer(model, args, train_dataset=text, callbacks=[recorder])
        trainer.train()                          # recorder.run is the run

    In a notebook the panel appears in the cell that trains. A rewind goes back as the Trainer resumes, from a
    checkpoint that the Trainer saved, data and random numbers included. An error is recorded as the run's failure. For
    these two, for which transformers calls no callback, `transformers.Trainer.train` is wrapped when the first
    RunCallback is made; a Trainer without one trains as before.

    The loss is what the Trainer logs, so each step has one with `logging_steps=1`; the Trainer leaves a loss that
    is not finite out of its mean unless `logging_nan_inf_filter=False`. Its checkpoints are copied into the run.

    Args:
        name: The run's name.
        folder: Where runs are kept.
        rules: What the run does on its own when a condition holds: `nb.rules`.
        keep_checkpoints: How many of the run's copies are kept; the first one always is.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: str | Path = "runs",
        rules: Sequence[Rule] = (),
        keep_checkpoints: int = 20,
    ) -> None:
        self.name = check_name(name)
        self.folder = expand_user(folder)
        self.rules = check_rules(rules)
        self.keep_checkpoints = keep_checkpoints
        self._run: Run | None = None
        self._session: TransformersSession | None = None
        _wrap_train()

    @property
    def run(self) -> Run:
        """The run.

        Raises:
            RunError: Training has not begun.
        """
        if self._run is None:
            raise RunError("There is no run yet: it begins with the training.")
        return self._run

    def follow(self, train: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Let a Trainer train, again from a checkpoint as often as a rewind asks for it; record an error.

        Args:
            train: Calls `Trainer.train` with changed arguments.

        Returns:
            What `Trainer.train` returns at last.
        """
        changes: dict[str, Any] = {}
        try:
            while True:
                output = train(changes)
                back = None if self._session is None else self._session.back_to
                if back is None:
                    return output
                changes = {"resume_from_checkpoint": str(back)}
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            if isinstance(error, KeyboardInterrupt):
                reason = f"interrupted in the step after {session.step}"
                session.record_end(EndRun(state="stopped", reason=reason))
            else:
                session.fail(error)
        finally:
            session.release()

    # -- what the Trainer calls -----------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """The Trainer begins, or goes on from where a rewind went back to."""
        if args.world_size > 1:
            raise UserError(
                "RunCallback follows a Trainer of one process.", hint="Leave it out, or use one GPU."
            )
        if self._session is not None and self._session.back_to is not None:
            self._session.went_back(args, state, control, parts)
            return
        if self._session is not None:  # an error ended the training before, and no callback was called
            self._fail(RuntimeError("the Trainer ended without reporting an end"))
        record = self._record(args, state, parts)
        path = create(self.folder, self.name, record).resolve()
        say_if_renamed(self.name, path)
        self._run = Run(path)
        self._session = TransformersSession(path, args, state, control, parts, keep=self.keep_checkpoints)
        self._session.start()
        show(self._run)

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """The safe point where a pause waits: what was to be saved at the last step is saved."""
        if self._session is not None:
            self._session.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """A step is taken; if the Trainer is about to log it, its metrics are still to come."""
        if self._session is not None:
            self._session.after_step(logs_follow=control.should_log)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """The metrics of the step arrive."""
        if self._session is not None and logs and "loss" in logs:
            self._session.take_logs(logs)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """The metrics of an evaluation arrive."""
        if self._session is not None and metrics:
            self._session.take_evaluation(metrics)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer has saved a checkpoint: the run gets a copy."""
        if self._session is not None:
            self._session.take_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer ends; or it does so for a rewind, and begins again."""
        if self._session is None or self._session.back_to is not None:
            return
        session, self._session = self._session, None
        try:
            session.end()
        finally:
            session.release()

    def _record(self, args: Any, state: Any, parts: dict[str, Any]) -> dict[str, Any]:
        return new_record(
            config={
                "steps": state.max_steps,
                "batch_size": args.per_device_train_batch_size,
                "accumulation": args.gradient_accumulation_steps,
                "lr": args.learning_rate,
                "clip": args.max_grad_norm,
                "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                "seed": args.seed,
                "rules": [rule.to_dict() for rule in self.rules],
            },
            settings=[setting.to_dict() for setting in SETTINGS],
            loss_unit=_loss_unit(args, parts.get("model")),
            cannot=self._cannot(args, parts),
            where="loop",
        )

    def _cannot(self, args: Any, parts: dict[str, Any]) -> dict[str, str]:
        reasons = {
            "start_again": f"{OWN_CODE}: trainer.train(resume_from_checkpoint=...) goes on, as a new run",
            "fork": f"{OWN_CODE}: start another Trainer from one of the checkpoints",
            "replay": OWN_CODE,
            "freeze": "the Trainer's optimizer holds the parameters that it was made with",
            "unfreeze": "the Trainer's optimizer holds the parameters that it was made with",
        }
        if args.save_only_model:
            reasons["rewind"] = "the Trainer saves no optimizer (save_only_model), so it cannot go back"
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            reasons["evaluate"] = "the Trainer does not evaluate (eval_strategy is 'no')"
        model, tokenizer = parts.get("model"), parts.get("processing_class")
        if not hasattr(tokenizer, "decode") or not hasattr(model, "generate"):
            reasons["sample"] = (
                "the Trainer was given no tokenizer (processing_class), or its model writes no text"
            )
        return reasons


def _loss_unit(args: Any, model: Any) -> str:
    """Return "nats/token" for transformers' causal language models, whose loss is their mean; else ""."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return NATS if known and not args.label_smoothing_factor else ""


@functools.cache
def _wrap_train() -> None:
    """Let every Trainer that has a `RunCallback` be followed by it while it trains."""
    from transformers import Trainer

    plain = Trainer.train
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def train(*args: Any, **options: Any) -> Any:
        given = signature.bind(*args, **options)
        callbacks = given.arguments["self"].callback_handler.callbacks
        recorder = next((each for each in callbacks if isinstance(each, RunCallback)), None)
        if recorder is None:
            return plain(*args, **options)

        def with_changes(changes: Mapping[str, Any]) -> Any:
            given.arguments.update(changes)
            return plain(*given.args, **given.kwargs)

        return recorder.follow(with_changes)

    Trainer.train = train
