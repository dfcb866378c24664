"""Every notebook, executed whole in a kernel of its own, without a network."""

from __future__ import annotations

import contextlib
import threading

import nbformat
import psutil
import pytest

from nbllm.core.errors import FetchError, UserError
from nbllm.core.quantities import size
from nbllm.models.zoo.fetching import fetch
from nbllm.notebook import execute, notebooks_folder
from tests.browser.lab import Lab

NOTEBOOKS = sorted(notebooks_folder().glob("*.ipynb"))
PRETRAINED = {"11-using-models": "smollm2-135m-instruct"}  # notebooks that open a published model
BINDER_MEMORY = 2 << 30  # what mybinder.org gives a person for JupyterLab, the kernel and all that they start


class MemoryWatch(threading.Thread):
    """Watches, twice a second, how much memory the processes hold that are started within its block.

    Attributes:
        most: The greatest size of all together, bytes; pages that two share count once, as a container counts them.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self._ended = 0, threading.Event()
        self._others = set(psutil.Process().children())  # other tests' browser, perhaps

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()

    def run(self):
        while not self._ended.wait(0.5):
            started = set(psutil.Process().children()) - self._others
            self.most = max(self.most, sum(map(self._resident, started)))

    @staticmethod
    def _resident(process):
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            for part in (process, *process.children(recursive=True)):
                total += part.memory_full_info().pss
        return total


@pytest.mark.notebook
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.realmodel] * (path.stem in PRETRAINED))
        for path in NOTEBOOKS
    ],
)
def test_the_notebook_executes_in_the_memory_that_binder_gives(path, tmp_path, monkeypatch):
    if path.stem in PRETRAINED:
        try:
            fetch(PRETRAINED[path.stem])
        except FetchError as error:
            pytest.skip(error.what)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with MemoryWatch() as memory, contextlib.closing(Lab(tmp_path / "lab")):
        executed = execute(path, tmp_path / "executed", say=print)
    content = nbformat.read(executed, as_version=4)
    assert all(cell.execution_count for cell in content.cells if cell.cell_type == "code")
    print(f"most memory: {size(memory.most)}")
    assert 5e8 < memory.most < BINDER_MEMORY, size(
        memory.most
    )  # torch and JupyterLab alone are more than the least


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_committed_without_output(path):
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    for cell in content.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def write(path, *sources):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# A heading")]
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, path)
    return path


def test_a_failing_cell_is_named_and_what_came_before_is_kept(tmp_path):
    path = write(tmp_path / "bad.ipynb", "print('kept')", "1 / 0", "print('never')")
    lines = []
    with pytest.raises(
        UserError, match=r"Cell 2 \(`1 / 0`\) of bad.ipynb failed: ZeroDivisionError: division by zero"
    ):
        execute(path, tmp_path / "out", say=lines.append)
    content = nbformat.read(tmp_path / "out" / "bad.ipynb", as_version=4)
    assert content.cells[1].outputs[0].text == "kept\n"
    assert [line for line in lines if "[ 2/3]" in line and "A heading" in line]


def test_a_cell_that_hangs_is_ended(tmp_path):
    path = write(tmp_path / "slow.ipynb", "import time; time.sleep(60)")
    with pytest.raises(UserError, match="longer than 3 s"):
        execute(path, tmp_path / "out", cell_timeout=3)
