"""Kept machine code is taken while all sources that it was made of are unchanged, and not after that."""

import subprocess
import sys

import pytest

pytest.importorskip("numba")

PART = """
from nbllm.nn.kernels.compilation import EXACT, part

@part(EXACT)
def value():
    return {}
"""
USE = {
    "nbllm.nn.kernels.compilation": """
import ctypes
table = (ctypes.c_int64 * 1)()
give.ctypes(table)
print(table[0], give.cache_hits)
""",
    "nbllm.data.kernels.jit": """
import numpy
table = numpy.zeros(1, numpy.int64)
give(table)
print(table[0], sum(give.stats.cache_hits.values()))
""",
}


@pytest.mark.parametrize("module", USE)
def test_a_change_in_a_file_beside_is_compiled(tmp_path, module):
    package = tmp_path / "kernels_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "whole.py").write_text(
        f"from {module} import kernel\nfrom kernels_of_a_test.parts import value\n\n"
        "@kernel\ndef give(data):\n    data[0] = value()\n"
    )

    def run(value):
        (package / "parts.py").write_text(PART.format(value))
        program = f"from kernels_of_a_test.whole import give\n{USE[module]}"
        done = subprocess.run(
            [sys.executable, "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert [run(1), run(1), run(2), run(2)] == [["1", "0"], ["1", "1"], ["2", "0"], ["2", "1"]]
    assert len(list((package / "__pycache__").glob("*.nbi"))) == 1  # that of the first is gone
