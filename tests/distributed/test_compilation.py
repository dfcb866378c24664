"""A compiled network is trained alike; without a compiler it is trained as it is, and that is said."""

import pytest
import torch._inductor.cpp_builder as cpp
from torch._inductor.exc import InvalidCxxCompiler

from nbllm.distributed import OneRank, Plan, lay_out
from nbllm.distributed.compilation import compile_network, compiler_problem
from tests.distributed.steps import assert_equal_steps, make_network, take_steps

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # within torch
needs_compiler = pytest.mark.skipif(compiler_problem("cpu") is not None, reason="no C++ compiler")


@needs_compiler
def test_steps_with_compiled_blocks_equal_those_of_one_process(two_ranks):
    plan = {"data": 2, "compile": "blocks", "activation_checkpointing": 2}
    found = two_ranks(take_steps, "untied", plan, steps=2)[0]
    assert_equal_steps(found, take_steps("untied", {}, steps=2))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize(
    "plan",
    [
        {"data": 2, "compile": "whole"},
        {"context": 2, "compile": "blocks"},
        {"tensor": 2, "sequence": True, "compile": "blocks"},
        {"tensor": 2, "compile": "whole"},
    ],
    ids=["whole", "context", "sequence", "tensor, whole"],
)
def test_steps_with_other_compiled_parts_equal_those_of_one_process(two_ranks, kind, plan):
    assert_equal_steps(two_ranks(take_steps, kind, plan, steps=2)[0], take_steps(kind, {}, steps=2))


def no_compiler(*args):
    raise InvalidCxxCompiler


@pytest.mark.parametrize("choice", ["blocks", "whole"])
def test_without_a_compiler_the_network_stays_and_it_is_said(monkeypatch, choice):
    monkeypatch.setattr(cpp, "get_cpp_compiler", no_compiler)
    layout = lay_out(make_network("decoder"), Plan(compile=choice), OneRank())
    assert "without being compiled: there is no C++ compiler" in layout.note
    assert "forward" not in vars(layout.network.blocks[0]) and "hidden" not in vars(layout.network)


@needs_compiler
def test_what_compiling_takes_is_said_beforehand():
    one = make_network("decoder")
    assert compile_network(one, "none") is None
    names = list(one.state_dict())
    assert "about 10 s longer" in compile_network(one, "blocks")
    assert "about 20 s" in compile_network(make_network("encoder_decoder"), "blocks")  # two kinds
    assert "about 40 s" in compile_network(make_network("decoder", num_layers=10), "whole")
    assert list(one.state_dict()) == names
