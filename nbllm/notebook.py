"""Run a notebook from start to end without a browser: `nbllm tour`, and the test of every notebook."""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError

TOUR = "00-tour.ipynb"


def notebooks_folder() -> Path:
    """Return where the notebooks are: beside the package in a checkout, else where the wheel put them.

    Raises:
        UserError: They are in neither place.
    """
    places = (
        Path(__file__).parent.parent / "notebooks",
        Path(sysconfig.get_path("data")) / "share/nbllm/notebooks",
    )
    for place in places:
        if (place / TOUR).exists():
            return place
    raise UserError("The notebooks were not found.", where=places[0], hint="Install nbllm again.")


def execute(
    notebook: Path,
    folder: Path,
    *,
    cell_timeout: int = 900,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Execute a notebook in a kernel of this Python, with `folder` as its working directory.

    The executed notebook is written into `folder` after every cell, so that what was computed is kept when a later
    cell fails or a person interrupts.

    Args:
        notebook: The notebook; it is not changed.
        folder: Made where it does not exist.
        cell_timeout: Seconds that one cell may take.
        say: Called with a line before each code cell and at the end: lines that stay, rather than a bar, for they say
            afterwards what took how long.

    Returns:
        The path of the executed notebook.

    Raises:
        UserError: A cell failed (the message has its number, its first line and the error) or took too long, or
            the kernel died.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / notebook.name
    content = nbformat.read(notebook, as_version=4)
    code_cells = [index for index, cell in enumerate(content.cells) if cell.cell_type == "code"]
    began = time.monotonic()

    def starting(cell: Any, cell_index: int) -> None:
        if cell_index in code_cells:
            number = f"[{code_cells.index(cell_index) + 1:>2}/{len(code_cells)}]"
            say(f"{number} {time.monotonic() - began:5.0f} s  {_heading(content.cells, cell_index)}")

    def done(cell: Any, cell_index: int, **_: Any) -> None:
        nbformat.write(content, target)

    client = NotebookClient(
        content,
        timeout=cell_timeout,
        kernel_name="python3",
        kernel_manager_class=_this_python(),
        coalesce_streams=True,  # a line rewritten in place is kept as it last was
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=starting,
        on_cell_executed=done,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise UserError(
            f"Cell {_failed(content, code_cells)} of {notebook.name} failed: {error.ename}: {error.evalue}",
            where=target,
            hint="Open the executed notebook to see the cell and its traceback.",
        ) from error
    except CellTimeoutError as error:
        raise UserError(
            f"A cell of {notebook.name} took longer than {cell_timeout} s.", where=target
        ) from error
    except DeadKernelError as error:
        raise UserError(
            f"The kernel died while it executed {notebook.name}.",
            where=target,
            hint="Mostly the memory was not enough: nbllm doctor says how much there is.",
        ) from error
    finally:
        nbformat.write(content, target)
    say(f"        {time.monotonic() - began:5.0f} s  done")
    return target


def _failed(content: Any, code_cells: list[int]) -> str:
    """Return "3 (`1 / 0`)" for the cell whose output is an error."""
    for number, index in enumerate(code_cells, start=1):
        cell = content.cells[index]
        if any(output.output_type == "error" for output in cell.outputs):
            return f"{number} (`{cell.source.strip().splitlines()[0]}`)"
    return "?"


def _heading(cells: list[Any], index: int) -> str:
    """Return the nearest heading above a cell."""
    for cell in reversed(cells[:index]):
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("#"):
                    return str(line.lstrip("# "))
    return "cell"


def _this_python() -> type:
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        """Starts kernels with this interpreter, whatever kernelspecs the person has installed."""

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                "{connection_file}",
                "--log-level=ERROR",
            ]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    return ThisPython
