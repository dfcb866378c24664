"""Where a trainer executes: a thread of this kernel, or one or several processes that outlive it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RunError, UserError
from nbllm.core.io import open_log, open_regular
from nbllm.core.switch_interval import short_switch_interval
from nbllm.distributed.launch import Launch, is_launched
from nbllm.distributed.plan import Plan
from nbllm.distributed.slurm import SlurmJob
from nbllm.opening import export
from nbllm.runs.commands import discard
from nbllm.runs.events import EventWriter, event_files
from nbllm.runs.lock import HANDOVER_SECONDS, TrainerLock
from nbllm.runs.process import this_process
from nbllm.runs.run import Run
from nbllm.runs.store import PROCESS_LOG, read_record
from nbllm.training.at_exit import finish_or_stop
from nbllm.training.config import TrainConfig
from nbllm.training.fork import fork
from nbllm.training.kernel_code import kernel_code
from nbllm.training.place import placed, plan_at, recorded_place
from nbllm.training.run_record import check_record
from nbllm.training.trainer import Trainer

if TYPE_CHECKING:
    from nbllm.lm import LM

LOG_END = 1 << 14  # bytes of the log in which a reason is looked for

_threads: dict[Path, tuple[threading.Thread, Trainer]] = {}


class Launcher:
    """Starts, resumes and forks runs; a `Run` handle holds one, since `runs` knows nothing of training.

    Args:
        lm: The model in this kernel that a thread's run gives its weights to, or `None`. A fork leaves it alone. The
            handle does not keep it alive: once nobody else holds it, there is no one to give weights to.
        where: "thread", "process", or on which processes; `None` is where the run's record says.
        plan: How the model lies over them; `None` is as the record says.

    Raises:
        UserError: `where` is none of these.
    """

    def __init__(
        self,
        lm: LM | None = None,
        where: str | Launch | SlurmJob | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.plan = plan
        self._lm = None if lm is None else weakref.ref(lm)
        self.where = None if where is None else placed(where)

    @property
    def lm(self) -> LM | None:
        """The model, while anybody holds it."""
        return None if self._lm is None else self._lm()

    def start(self, path: Path) -> Run:
        """Start a trainer on the run and return a handle at once.

        Raises:
            RunError: Somebody trains it already, or its folder cannot be written.
        """
        path = path.resolve()  # the working directory may change while the run goes on
        run = Run(path, launcher=self)
        check_record(path, run.record)
        lm = self.lm
        if lm is not None and lm.config.vocab_size != run.record["model"]["vocab_size"]:
            raise RunError(
                "The model was resized since this run began; the run's weights no longer fit into it.",
                where=path,
                hint=f"nb.attach({_as_given(path)!r}).resume() goes on with the run's own weights alone.",
            )
        # A trainer that has written its last event may still hold the run for a moment; so may, by its path, that of a
        # run of this name that was deleted.
        patience = 0.0 if run.is_live and run.timeline.starts else HANDOVER_SECONDS
        place = self.where or recorded_place(run.record)
        if place["launch"] is not None and is_launched():
            return run  # this is one of its ranks itself: torchrun has started them all
        plan = plan_at(run.record, place, self.plan)
        by_plan = ("--plan", json.dumps(plan.to_dict()))
        if place["slurm"] is not None:
            if plan.to_dict() != run.record.get("plan"):
                raise UserError(
                    "A job of Slurm trains a run by the run's own plan.",
                    where=path,
                    hint="Fork it: nb.attach(run, where=..., plan=...).fork(name).",
                )
            SlurmJob.from_dict(place["slurm"]).submit_run(path)
        elif place["launch"] is not None:
            _check_one_machine(path, place["launch"])
            _start_process(run, patience, "supervisor", json.dumps(place["launch"]), *by_plan)
        elif place["where"] == "process":
            _start_process(run, patience, "worker", "--kernel", *by_plan)
        else:
            _start_thread(path, lm, patience, plan)
        return run

    def resume(self, run: Run) -> Run:
        """Take a run that is not live up again from its newest good checkpoint."""
        return self.start(run.path)

    def fork(self, run: Run, name: str, step: int | None, changes: Mapping[str, Any]) -> Run:
        """Start a new run from a checkpoint of another; `nb.load(fork)` opens its model."""
        path = fork(
            run.path, name, step=step, changes=changes, actor=run.actor, where=self.where, plan=self.plan
        )
        return Launcher().start(path)

    def export(self, run: Run, path: Path | str, step: int | None) -> Path:
        """Write a run's model as a directory of Hugging Face layout."""
        return export(run, path, at_step=step)


def refuse_while_trained(lm: LM, *, path: Path | None = None) -> None:
    """Refuse to train a model that a run of this kernel is training: it would begin with half-trained weights.

    Args:
        lm: The model.
        path: The run that is about to be started, where it has begun before.

    Raises:
        RunError: Another run trains it and writes its weights into it.
    """
    _forget_ended()
    for other, (thread, trainer) in list(_threads.items()):  # another thread may start a run meanwhile
        if other == path or trainer.publish_to is None or trainer.publish_to.model is not lm.model:
            continue
        if trainer.stop_reason is not None or not Run(other).is_live:  # it saves, and is about to end
            thread.join(HANDOVER_SECONDS)
        if thread.is_alive():
            raise RunError(
                f"This model is being trained by the run {other.name!r}, which writes its weights into it.",
                where=other,
                hint=f"nb.panel({_as_given(other)!r}) shows it. Wait for it (run.wait()), stop it "
                f"(nb.attach({_as_given(other)!r}).stop()), or train a copy: nb.train(lm.copy(), ...).",
            )


def _as_given(path: Path) -> str:
    """Return the shortest text by which `nb.attach` finds a run."""
    return path.name if path.parent == Path("runs").resolve() else str(path)


def _check_one_machine(path: Path, launch: Mapping[str, Any]) -> None:
    if launch["nodes"] > 1:
        raise RunError(
            f"A run on {launch['nodes']} machines cannot be started from one of them.",
            where=path,
            hint=f"On each: torchrun ... -m nbllm.training.worker {path}; or where=nb.Launch.slurm(nodes="
            f"{launch['nodes']}, processes_per_node={launch['processes']}).",
        )


def _start_thread(path: Path, lm: LM | None, patience: float, plan: Plan) -> None:
    if lm is None:
        _forget_ended()
    else:
        refuse_while_trained(lm, path=path)
    trainer = Trainer(path, where="thread", publish_to=lm, plan=plan)
    trainer.claim(patience)  # here, so that the error appears in this cell when somebody else trains the run
    try:
        _discard_old_commands(path)
    except BaseException:
        trainer.release()
        raise
    name = f"nbllm run {path.name}"
    thread = threading.Thread(target=_train_quietly, args=(trainer,), name=name, daemon=True)
    _threads[path] = (thread, trainer)
    if lm is not None:
        lm.refuse_resizing_while(functools.partial(refuse_while_trained, lm))
    thread.start()


def _train_quietly(trainer: Trainer) -> None:
    # The error is the run's last event, and `Run.wait` raises it: a traceback in a later cell would only confuse.
    with contextlib.suppress(Exception), short_switch_interval():
        trainer.run()


def _start_process(run: Run, patience: float, module: str, *arguments: str) -> None:
    """Start `nbllm.training.<module>` on the run, in a process of its own."""
    path = run.path
    code = kernel_code(TrainConfig.from_dict(run.record["config"]))
    with TrainerLock(path, patience):  # as above; the process takes it again
        _discard_old_commands(path)
        sessions, created = len(event_files(path)), read_record(path).get("created")
    with _open_log(path) as log, tempfile.TemporaryFile() as given:
        given.write(code)
        given.seek(0)
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-m", f"nbllm.training.{module}", str(path), *arguments],
            stdin=given,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it survives when the kernel is interrupted or closed,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows too
        )
    watch = threading.Thread(
        target=_watch, args=(process, path, created, sessions), name=f"watch {path.name}", daemon=True
    )
    watch.start()


def _open_log(path: Path) -> FileIO:
    try:
        return open_log(path / PROCESS_LOG)
    except OSError as error:
        raise RunError(
            f"{PROCESS_LOG} cannot be written: {error.strerror}.", where=path / PROCESS_LOG
        ) from error


def _discard_old_commands(path: Path) -> None:
    """Drop the commands sent to a trainer that died; the caller holds the lock."""
    if event_files(path):
        discard(path)


def _watch(process: subprocess.Popen[bytes], path: Path, created: object, sessions: int) -> None:
    """Wait for a process to end; if it ended before it could write events, record that it failed."""
    code = process.wait()
    with contextlib.suppress(RunError, OSError):
        if read_record(path).get("created") != created:
            return  # another run has replaced it
        with TrainerLock(path):
            _record_silent_end(path, code, sessions)


def _record_silent_end(path: Path, code: int, sessions: int) -> None:
    """Record that a process failed, where its log says the reason, if it wrote no events itself."""
    if len(event_files(path)) > sessions:
        return
    with open_regular(path / PROCESS_LOG, follow=False) as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_END))
        lines = log.read(LOG_END).decode(errors="replace").strip().splitlines()
    # An error's own line is the last that is not indented: where it is and a hint stand below it.
    said = next((line for line in reversed(lines) if not line.startswith(" ")), "no output")
    reason = f"the process ended with exit code {code}: {said}"
    with EventWriter(path, "trainer") as writer:
        writer.write("start", 0, from_step=0, where="process", **this_process())
        writer.write("end", 0, state="failed", reason=reason, digest=None)


def is_training(path: Path, lm: LM) -> bool:
    """Say whether a thread of this kernel trains the run at `path`, and gives its weights to the model."""
    _forget_ended()
    entry = _threads.get(path)
    return entry is not None and entry[1].publish_to is not None and entry[1].publish_to.model is lm.model


def _forget_ended() -> None:
    for path, (thread, _) in list(_threads.items()):
        if not thread.is_alive():
            _threads.pop(path, None)


@atexit.register
def _end_runs() -> None:
    _forget_ended()
    finish_or_stop(list(_threads.values()))
