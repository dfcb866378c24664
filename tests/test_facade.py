"""The façade: quick to import, complete, and true to its stub."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nbllm as nb

HEAVY = ("torch", "numba", "numpy", "transformers", "datasets", "ipywidgets", "IPython", "pandas", "psutil")


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_loads_nothing_heavy():
    loaded = run("import sys, nbllm; print(' '.join(sys.modules))").split()
    assert not set(loaded) & set(HEAVY)


def test_tab_shows_the_public_names_and_nothing_else():
    names = run("import nbllm; print(' '.join(dir(nbllm)))").split()
    stub = ast.parse((Path(nb.__file__).parent / "__init__.pyi").read_text())
    declared = {a.asname or a.name for n in stub.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert set(names) == declared
    assert {"LM", "Run", "Report", "train", "load", "evaluate", "runs", "doctor", "survey"} <= declared


@pytest.mark.parametrize("name", sorted(set(dir(nb))))
def test_every_public_name_resolves_and_says_what_it_is(name):
    assert getattr(nb, name).__doc__


def test_runs_is_a_package_and_lists(tmp_path):
    assert nb.runs.Run is nb.Run
    assert len(nb.runs(tmp_path)) == 0
