import json
import sys

import pytest
import torch

from nbllm.core.machine import machine_facts, versions
from nbllm.nn import kernels
from nbllm.nn.compute import doctor as module
from nbllm.nn.compute.doctor import Doctor, doctor

from .machines import MACHINES, machine

ON_CPU = [name for name, profile in MACHINES.items() if profile.device == "cpu"]


def example(**changes):
    facts = {"processor": "x", "system": "Linux", "cores": 2, "memory_bytes": 10**9, "gpus": []}
    values = {"facts": facts, "packages": {"torch": "2"}, "profiles": (machine(100, 300, 150),)}
    return Doctor(**{**values, "kernel_errors": {}, **changes})


def test_it_says_what_there_is_and_what_follows(monkeypatch):
    monkeypatch.setattr(module, "machine_profile", lambda *_, **__: machine(100, 300, 150))
    found = doctor()
    assert found.facts["cores"] >= 1
    for text in (repr(found), found._repr_html_()):
        for expected in ("GFLOP/s", "GB/s", f"torch {torch.__version__}", "Train in bfloat16", "threads"):
            assert expected in text


def test_it_measures_again_when_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "machine_profile", lambda _, measure_again: asked.append(measure_again) or machine(1, 2)
    )
    doctor(), doctor(measure_again=True)
    assert set(asked) == {False, True}


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("gpu", [None, "GPU", "GPU without bfloat16"])
def test_no_two_conclusions_are_about_the_same(name, gpu):
    profiles = (MACHINES[name],) if gpu is None else (MACHINES[name], MACHINES[gpu])
    said = [choice for choice, _ in example(profiles=profiles).conclusions]
    assert len(said) == len(set(said))
    trained = [
        choice for choice in said if choice.startswith("Train in") and not choice.endswith("on the CPU")
    ]
    assert len(trained) == 1
    assert said[0] == ("Compute on the CPU" if gpu is None else "Compute on the GPU")


def test_a_busy_machine_is_said_to_have_been_busy():
    busy = machine(100, 300).replace(steady=False)
    assert "busy" in repr(example(profiles=(busy,))) and "busy" not in repr(example())


def test_what_the_machine_calls_itself_is_escaped():
    facts = {**example().facts, "processor": "<script>alert(1)</script>"}
    html = example(facts=facts, kernel_errors={"team": "<b>"})._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "<made up>" not in html
    assert "&lt;script&gt;" in html


def test_a_gpu_is_named():
    gpu = {"name": "Some GPU", "memory_bytes": 80 * 10**9}
    assert "Some GPU, 80 GB" in repr(example(facts={**example().facts, "gpus": [gpu]}))


def test_facts_and_versions_are_plain_values():
    assert json.loads(json.dumps([machine_facts(), versions()]))[1]["torch"] == torch.__version__


def test_a_kernel_that_cannot_be_compiled_is_reported_with_the_reason(monkeypatch):
    monkeypatch.setattr(kernels, "_modules", {})
    monkeypatch.delitem(sys.modules, "nbllm.nn.kernels.normalization", raising=False)
    broken = type("Finder", (), {"find_spec": staticmethod(refuse)})
    monkeypatch.setattr(sys, "meta_path", [broken, *sys.meta_path])
    errors = kernels.why_not_compiled()
    assert errors == {"normalization": "OSError: no such <instruction>"}
    assert kernels.compiled("normalization") is None and kernels.compiled("activations") is not None
    found = example(kernel_errors=errors)
    assert "no such <instruction>" in repr(found) and "no such &lt;instruction&gt;" in found._repr_html_()
    assert "could not be compiled" not in repr(example())


def refuse(name, *_):
    if name == "nbllm.nn.kernels.normalization":
        raise OSError("no such <instruction>")
