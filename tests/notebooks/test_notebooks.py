"""Every notebook, executed whole in a kernel of its own, without a network (see executed.py)."""

from __future__ import annotations

import json

import nbformat
import pytest

from nbllm.core.errors import FetchError, UserError
from nbllm.core.quantities import size
from nbllm.models.zoo.fetching import fetch
from nbllm.notebook import execute, notebooks_folder
from tests.notebooks import executed as notebooks

NOTEBOOKS = sorted(notebooks_folder().glob("*.ipynb"))
PRETRAINED = dict.fromkeys(  # which these open
    ("05-finetuning", "06-evaluation", "11-using-models"), "smollm2-135m-instruct"
)
BINDER_MEMORY = 2 << 30  # what mybinder.org gives a person for JupyterLab, the kernel and all that they start
# They take 2.08 and 2.04 GB of these 2.15 where they were measured; what the libraries take depends on the processor.
MARGINS = {"04-training-at-scale": 1.1, "05-finetuning": 1.1}


@pytest.mark.notebook
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.realmodel] * (path.stem in PRETRAINED))
        for path in NOTEBOOKS
    ],
)
def test_the_notebook_executes_in_the_memory_that_binder_gives(name, executed):
    if name in PRETRAINED:
        try:
            fetch(PRETRAINED[name])
        except FetchError as error:
            pytest.skip(error.what)
    made = executed(name)
    content = nbformat.read(made.path, as_version=4)
    assert all(cell.execution_count for cell in content.cells if cell.cell_type == "code")
    # torch and JupyterLab alone are more than the least
    assert 2e8 < made.memory < MARGINS.get(name, 1.0) * BINDER_MEMORY, size(made.memory)


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


def test_what_was_executed_by_other_code_is_not_taken_for_ours(tmp_path):
    path = write(tmp_path / "small.ipynb", "import pathlib; pathlib.Path('beside.txt').write_text('saved')")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / notebooks.RECORD).write_text(
        json.dumps({"code": notebooks.code_fingerprint(path), "memory": 5})
    )
    assert notebooks.read(path, folder) == notebooks.Executed(folder / "small.ipynb", 5)
    write(path, "1 + 1")
    with pytest.raises(AssertionError, match="was made by other code"):
        notebooks.read(path, folder)
