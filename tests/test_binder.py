"""binder/: what repo2docker makes of it, and its scripts run here, without a container engine."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from nbllm.core.machine import usable_cores
from nbllm.models.zoo.known import MODELS

with warnings.catch_warnings():
    # It still imports pythonjsonlogger's module by its old name.
    warnings.filterwarnings("ignore", "pythonjsonlogger", DeprecationWarning)
    from repo2docker.app import Repo2Docker
    from repo2docker.buildpacks import PythonBuildPack

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"


def left_out(folder, names):
    """Return what a clone would not have."""
    own = {"runs", "build", "dist"} if Path(folder) == ROOT else set()
    return [name for name in names if name.startswith(".") or name == "__pycache__" or name in own]


def lines(name):
    return [line for line in (BINDER / name).read_text().splitlines() if line and not line.startswith("#")]


def pins():
    found = {}
    for line in lines("constraints.txt"):
        name, version = line.split("==")
        found[canonicalize_name(name)] = version
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The repository as a clone would have it: nothing compiled, nothing trained."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("binder") / "checkout", ignore=left_out)


@pytest.fixture
def pack(checkout):
    """What repo2docker finds the repository to be."""
    with contextlib.chdir(checkout):
        app = Repo2Docker()
        pack = next(pack for kind in app.buildpacks if (pack := kind(app.base_image)).detect())
        pack.platform = "linux/amd64"  # Binder's
        yield pack


def test_repo2docker_takes_it_as_python_and_writes_its_dockerfile(pack):
    assert type(pack) is PythonBuildPack
    dockerfile = pack.render()
    steps = dockerfile.splitlines()

    def place(text):
        (found,) = [i for i, line in enumerate(steps) if line.startswith(text)]
        return found

    everything = place("COPY --chown=1000:1000 src/ ${REPO_DIR}/")
    requirements = place(
        'RUN ${KERNEL_PYTHON_PREFIX}/bin/pip install --no-cache-dir -r "binder/requirements.txt"'
    )
    post_build = place("RUN ./binder/postBuild")
    assert everything < requirements < post_build
    assert 'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in steps
    # The notebook's user runs it, so that Numba's cache is his.
    assert [line for line in steps[:post_build] if line.startswith("USER ")][-1] == "USER ${NB_USER}"


def test_it_has_a_python_that_the_package_allows(pack):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pack.python_version == "3.11"  # constraints.txt was made with it
    assert pack.python_version in SpecifierSet(project["requires-python"])


def test_torch_is_the_cpu_build_of_the_pinned_release():
    index, constraints, *requirements = lines("requirements.txt")
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert constraints == "-c constraints.txt"
    assert requirements == [f"torch=={pins()['torch']}+cpu"]
    # pip takes the local version for the pinned one: the constraint lets it in, and postBuild leaves it alone.
    assert Requirement(f"torch=={pins()['torch']}").specifier.contains(f"{pins()['torch']}+cpu")


def test_every_dependency_is_pinned_to_a_release_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + [
        each for extra in project["optional-dependencies"].values() for each in extra
    ]:
        needed = Requirement(line)
        if needed.name == project["name"]:  # extras of its own
            continue
        version = pins().get(canonicalize_name(needed.name))
        assert version is not None, f"{needed.name} is not in constraints.txt"
        assert needed.specifier.contains(version), f"{line}, pinned to {version}"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_the_scripts_can_be_executed_and_stop_at_the_first_error(name):
    path = BINDER / name
    assert path.stat().st_mode & stat.S_IXUSR
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text and "\r" not in text
    subprocess.run(["bash", "-n", path], check=True)


@pytest.fixture(scope="module")
def environment(checkout, tmp_path_factory):
    """Processes whose `python` is this one with the checkout's nbllm.

    Its pip and its command line only write down how they are called; the latter then fails, as without a network.
    """
    tools = tmp_path_factory.mktemp("tools")
    stub = tools / "python"
    stub.write_text(
        f"""#!/bin/sh
case "$2" in
    pip) echo "$@" > "{tools}/pip" ;;
    nbllm) echo "$@" > "{tools}/nbllm"; exit 1 ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    )
    stub.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "NBLLM_CACHE": str(tools / "cache"),
        "TOOLS": str(tools),
    }


@pytest.mark.slow
def test_post_build_installs_the_package_fetches_the_model_and_leaves_the_kernels_compiled(
    checkout, environment, tmp_path
):
    subprocess.run([checkout / "binder/postBuild"], cwd=tmp_path, env=environment, check=True)
    called = Path(environment["TOOLS"], "pip").read_text().split()
    assert called[:3] == ["-m", "pip", "install"] and "--no-cache-dir" in called
    assert called[-4:] == ["-c", "binder/constraints.txt", "-e", "."]
    called = Path(environment["TOOLS"], "nbllm").read_text().split()
    assert called == ["-m", "nbllm", "fetch", "smollm2-135m-instruct"] and called[-1] in MODELS
    assert not list(tmp_path.iterdir()) and not (checkout / "runs").exists()
    kernels = checkout / "nbllm/data/kernels"
    for folder in (kernels, checkout / "nbllm/nn/kernels"):
        assert all(source.stat().st_mtime_ns % 10**9 == 0 for source in folder.glob("*.py"))
        assert list(folder.rglob("*.nbi"))
    # The image is packed and unpacked: times in whole seconds, all else as it was.
    for file in kernels.rglob("*"):
        os.utime(file, (int(file.stat().st_mtime),) * 2)
    code = (
        "import sys; sys.path.insert(0, 'binder'); import warm\n"
        "from nbllm.data.kernels import packing, windows\n"
        "for kernel in (packing.append_documents, windows.window_starts):\n"
        "    print(kernel.py_func.__name__, *(sum(counts.values()) for counts in kernel.stats[1:]))"
    )
    link = tmp_path / "binder"
    link.symlink_to(checkout / "binder")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert found == [["append_documents", "1", "0"], ["window_starts", "1", "0"]]


def test_start_tells_the_libraries_how_many_cores_there_are(environment):
    shown = 'echo "$OMP_NUM_THREADS $OPENBLAS_NUM_THREADS $RAYON_NUM_THREADS $1"'
    done = subprocess.run(
        [BINDER / "start", "sh", "-c", shown, "sh", "an argument"],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    cores = usable_cores()
    assert done.stdout == f"{cores} {cores} {cores} an argument\n"
