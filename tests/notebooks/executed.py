"""Each notebook executed once, for all tests that look at it.

`python -m tests.notebooks.executed FOLDER NOTEBOOK ...` executes notebooks, the tour as `nbllm tour` does, and leaves
what they made in `FOLDER/NOTEBOOK`. With NBLLM_EXECUTED=FOLDER the tests read it there; without, they make it. It
needs nothing but nbllm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
import tempfile
import threading
from pathlib import Path

import psutil

import nbllm
from nbllm.cli import main
from nbllm.core.quantities import size
from nbllm.notebook import TOUR, execute, notebooks_folder
from tests.browser.lab import Lab

RECORD = "executed.json"
CODE = (".py", ".pyi", ".js", ".css")


@dataclasses.dataclass(frozen=True)
class Executed:
    """An executed notebook.

    Attributes:
        path: The notebook with its output; what it saved lies beside it.
        memory: The most memory that its kernel and a JupyterLab held together, bytes.
    """

    path: Path
    memory: int


class MemoryWatch(threading.Thread):
    """Watches, twice a second, how much memory the processes hold that are started within its block.

    Attributes:
        most: The greatest size of all together, bytes; pages that two share count once, as a container counts them.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._ended = 0, threading.Event()
        self._others = set(psutil.Process().children())  # other tests' browser, perhaps

    def __enter__(self) -> MemoryWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.5):
            started = set(psutil.Process().children()) - self._others
            self.most = max(self.most, sum(map(self._resident, started)))

    @staticmethod
    def _resident(process: psutil.Process) -> int:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since
            for part in (process, *process.children(recursive=True)):
                total += part.memory_full_info().pss
        return total


def code_fingerprint(notebook: Path) -> str:
    """Return a digest of nbllm's code and of a notebook."""
    package = Path(nbllm.__file__).parent
    digest = hashlib.sha256(notebook.read_bytes())
    for path in sorted(path for path in package.rglob("*") if path.suffix in CODE):
        digest.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def execute_once(notebook: Path, folder: Path) -> Executed:
    """Execute a notebook with a JupyterLab beside it, and leave what it makes in `folder`, which must not exist."""
    with tempfile.TemporaryDirectory() as home, MemoryWatch() as memory, contextlib.closing(Lab(Path(home))):
        if notebook == notebooks_folder() / TOUR:
            assert main(["tour", "--folder", str(folder)]) == 0
        else:
            execute(notebook, folder, say=print)
    print(f"most memory: {size(memory.most)}")
    record = {"code": code_fingerprint(notebook), "memory": memory.most}
    (folder / RECORD).write_text(json.dumps(record))
    return read(notebook, folder)


def read(notebook: Path, folder: Path) -> Executed:
    """Return what `execute_once` has left, which must have been by the code as it is now."""
    record = json.loads((folder / RECORD).read_text())
    assert record["code"] == code_fingerprint(notebook), f"{folder} was made by other code"
    return Executed(folder / notebook.name, record["memory"])


if __name__ == "__main__":
    target, *names = sys.argv[1:]
    for name in names:
        execute_once(notebooks_folder() / f"{name}.ipynb", Path(target) / name)
