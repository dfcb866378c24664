from __future__ import annotations

import subprocess
import sys

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed.launch import Launch


def test_it_is_a_plain_value():
    launch = Launch(processes=4, restarts=0)
    assert Launch.from_dict(launch.to_dict()) == launch
    assert nb.Launch is Launch


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"processes": 0}, "processes must be greater than 0"),
        ({"processes": 1 << 20}, "65,536 ranks"),
        ({"processes": 2.5}, "a whole number"),
        ({"nodes": 0}, "nodes must be greater than 0"),
        ({"restarts": -1}, "must not be negative"),
        ({"proceses": 2}, "has no setting"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        Launch.from_dict(settings)
    if "proceses" not in settings and said != "a whole number":
        with pytest.raises(UserError, match=said):
            Launch(**settings)


def test_naming_a_launch_does_not_load_torch():
    code = "import sys, nbllm as nb; nb.Launch(processes=2); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
