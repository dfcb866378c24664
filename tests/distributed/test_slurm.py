"""Job files for Slurm: what they say."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed.slurm import SlurmJob

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def options_of(text):
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


@needs_bash
def test_a_job_file_asks_for_what_was_said(tmp_path):
    job = nb.Launch.slurm(
        nodes=4, processes_per_node=8, cpus_per_process=6, time="2-00:00:00", partition="gpu", account="us",
        memory="200G", setup=["module load cuda", "source 'my venv/bin/activate'"],
    )  # fmt: skip
    path = job.write(tmp_path / "my job.sbatch", config="big one.toml", folder="/shared/runs")
    text = path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).stderr == b""
    assert options_of(text) == {
        "job-name": "my-job", "nodes": "4", "ntasks-per-node": "1", "gpus-per-node": "8", "cpus-per-task": "48",
        "mem": "200G", "time": "2-00:00:00", "partition": "gpu", "account": "us", "signal": "B:USR1@180",
        "output": "my-job-%j.out", "open-mode": "append", "requeue": "",
    }  # fmt: skip
    assert "-m nbllm launch 'big one.toml' --name 'my job' --folder /shared/runs &" in text
    assert text.index("source 'my venv/bin/activate'") < text.index("srun")


def test_a_job_without_gpus_and_wishes_asks_for_nothing_more():
    options = options_of(SlurmJob(gpus_per_node=0).text(["-m", "nbllm"], name="cpu"))
    assert not {"gpus-per-node", "cpus-per-task", "mem", "partition", "account"} & options.keys()
    assert SlurmJob.from_dict(SlurmJob(setup=["a", "b"]).to_dict()) == SlurmJob(setup=["a", "b"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"nodes": 0}, "nodes must be greater than 0"),
        ({"partition": "gpu\n#SBATCH --uid=root"}, "partition cannot be"),
        ({"time": "$(reboot)"}, "time cannot be"),
        ({"gpus_per_node": -1}, "must not be negative"),
        ({"setup": "module load"}, "a list of lines"),
        ({"node": 2}, "has no setting 'node'"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        nb.Launch.slurm(**settings)
