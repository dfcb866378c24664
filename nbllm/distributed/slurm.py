"""A job file for a Slurm cluster, and its submission."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nbllm.core.config import PlainConfig, check_positive
from nbllm.core.errors import RunError, UserError
from nbllm.core.io import expand_user, write_atomic
from nbllm.distributed.launch import Launch

WARNING_SECONDS = 180  # before the time is over: enough for the last checkpoint
_WORD = re.compile(r"[\w.,:@/+=*-]+")  # what an option of #SBATCH may be; it knows no quotes
_NAME = re.compile(r"[^\w.+-]+")

_TEXT = """\
#!/bin/bash
{options}

# Stop at a checkpoint before the time is over, and go into the queue again.
requeue() {{
    echo "The time is nearly over: the run is stopped at a checkpoint, and the job is queued again."
    kill -TERM "$step"
    wait "$step"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}}
trap requeue USR1

{setup}# The machine that holds the rendezvous is told by its name, so the order of the nodes does not matter.
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export head_node
export rendezvous_port=$((20000 + SLURM_JOB_ID % 10000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={patience}

# One torchrun on each node starts its ranks; they meet at the head node.
srun --kill-on-bad-exit=1 bash -c '
    is_host=false
    [ "$SLURMD_NODENAME" = "$head_node" ] && is_host=true
    exec "$0" -m torch.distributed.run \\
        --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node={processes} --max-restarts={restarts} \\
        --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head_node:$rendezvous_port" \\
        --rdzv-conf="is_host=$is_host" \\
        "$@"
' {python} {command} &
step=$!
wait "$step"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmJob(PlainConfig):
    """A job of a Slurm cluster: `nb.Launch.slurm(nodes=4, processes_per_node=8).write("job.sbatch")`.

    As `where=` of `nb.train` it prepares the run in its folder, which must lie on a disk that all nodes share, and
    submits a job that trains it; the panel follows over that disk. Before its time is over, and when it is preempted,
    the job stops at a checkpoint, goes into the queue again, and the run goes on from there.

    Args:
        nodes: How many machines.
        processes_per_node: How many ranks on each.
        gpus_per_node: Devices of each machine; None: one for each rank. 0 trains on the CPU.
        cpus_per_process: Cores for each rank; None: what the cluster gives.
        time: How long, as Slurm writes it: "24:00:00", "2-00:00:00".
        partition: Where to queue; None: the cluster's default.
        account: Who is charged; None: the cluster's default.
        memory: Of each machine, as Slurm writes it: "200G"; None: the cluster's default.
        restarts: As in `Launch`.
        setup: Lines of shell that run before, such as ("module load cuda", "source venv/bin/activate").

    Raises:
        UserError: A number is out of range, or a text is none that an option of Slurm can be.
    """

    nodes: int = 1
    processes_per_node: int = 8
    gpus_per_node: int | None = None
    cpus_per_process: int | None = None
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    memory: str | None = None
    restarts: int = 3
    setup: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_positive(self, "processes_per_node", "nodes")
        if self.gpus_per_node is not None and self.gpus_per_node < 0:
            raise UserError(
                f"gpus_per_node must not be negative, but is {self.gpus_per_node}.", where="SlurmJob"
            )
        if self.cpus_per_process is not None:
            check_positive(self, "cpus_per_process")
        for name in ("time", "partition", "account", "memory"):
            value = getattr(self, name)
            if value is not None and not _WORD.fullmatch(value):
                raise UserError(f"{name} cannot be {value!r}.", where="SlurmJob")
        if isinstance(self.setup, str) or not all(isinstance(line, str) for line in self.setup):
            raise UserError(
                "setup must be a list of lines.", where="SlurmJob", hint='setup=["module load cuda"]'
            )
        object.__setattr__(self, "setup", tuple(self.setup))
        _ = self.launch  # which checks the rest

    @property
    def launch(self) -> Launch:
        """The ranks of the job."""
        return Launch(processes=self.processes_per_node, nodes=self.nodes, restarts=self.restarts)

    def write(
        self,
        path: str | Path = "job.sbatch",
        *,
        config: str | Path = "train.toml",
        name: str | None = None,
        folder: str | Path = "runs",
    ) -> Path:
        """Write a job file that trains what a TOML file says, and return its path; `sbatch job.sbatch` submits it.

        A job that is submitted again goes on with the run of that name.

        Args:
            path: The job file.
            config: The TOML file; `nbllm train --help` shows one.
            name: The run's name; the job file's when not given.
            folder: Where runs are kept, on a disk that all nodes share.
        """
        path = expand_user(path)
        name = name or path.stem
        words = ["-m", "nbllm", "launch", str(config), "--name", name, "--folder", str(folder)]
        return _written(path, self.text(words, name=name))

    def submit(self, path: str | Path) -> str:
        """Submit a job file, and return the job's number.

        Raises:
            RunError: Slurm refuses it; its own words say why.
            UserError: There is no Slurm here.
        """
        check_slurm()
        done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)  # noqa: S603, S607
        if done.returncode:
            raise RunError(f"Slurm refuses the job: {done.stderr.strip() or done.returncode}.", where=path)
        return done.stdout.strip().partition(";")[0]

    def submit_run(self, path: Path) -> str:
        """Submit a job that trains the run at `path`, and return its number; errors as `submit`."""
        words = ["-m", "nbllm.training.worker", str(path)]
        return self.submit(
            _written(path / "logs" / "job.sbatch", self.text(words, name=path.name, logs=path))
        )

    def text(self, command: Sequence[str], *, name: str, logs: Path | None = None) -> str:
        """Return the text of a job file.

        Args:
            command: What torchrun is to run on each rank: "-m", a module, its arguments.
            name: The job's name.
            logs: The run in whose folder the job's own output goes; None: the working directory.
        """
        gpus = self.processes_per_node if self.gpus_per_node is None else self.gpus_per_node
        cpus = self.cpus_per_process
        job = _NAME.sub("-", name)
        options = {
            "job-name": job,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": gpus or None,
            "cpus-per-task": None if cpus is None else cpus * self.processes_per_node,
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"B:USR1@{WARNING_SECONDS}",
            "output": f"{job}-%j.out" if logs is None else None,
            "open-mode": "append",
        }
        lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
        if logs is not None:
            lines.append(f"#SBATCH --output={_quoted(logs / 'logs' / 'job-%j.out')}")
        return _TEXT.format(
            options="\n".join([*lines, "#SBATCH --requeue"]),
            setup="".join(f"{line}\n" for line in self.setup) + ("\n" if self.setup else ""),
            patience=WARNING_SECONDS - 30,
            python=shlex.quote(sys.executable),
            processes=self.processes_per_node,
            restarts=self.restarts,
            command=shlex.join(command),
        )


def check_slurm() -> None:
    """Raise `UserError` where there is no Slurm to submit to."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "There is no sbatch here.",
            hint='nb.Launch.slurm(...).write("job.sbatch") writes the file; submit it on the cluster: '
            "sbatch job.sbatch",
        )


def _quoted(path: Path) -> str:
    """Return a path as an option of #SBATCH can hold it.

    Raises:
        UserError: It cannot.
    """
    if any(sign in str(path) for sign in '"\n%\\') and "%j" not in path.name:
        raise UserError("Slurm cannot write its output there.", where=path, hint="Choose a plain name.")
    return f'"{path}"' if " " in str(path) else str(path)


def _written(path: Path, text: str) -> Path:
    write_atomic(path, text.encode())
    return path
