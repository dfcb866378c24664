"""What `torch.compile` wraps is saved, trained and followed under its own names."""

import pytest
import torch
from torch import nn

from nbllm.data import train_tokenizer
from nbllm.lm import LM
from nbllm.nn.compiled import load_state_by_name, parameters_by_name, state_by_name, unwrapped
from nbllm.opening import load

# torch's own, when it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")

TEXT = ["the cat sat on the mat and the dog sat on the log"]


@pytest.fixture
def lm():
    tokenizer = train_tokenizer(TEXT * 4, 280)
    return LM.new("llama", tokenizer=tokenizer, hidden_size=32, num_layers=2, num_heads=4, max_positions=32)


def whole(lm):
    return LM(torch.compile(lm.model), lm.tokenizer)


def assigned(lm):
    lm.model = torch.compile(lm.model)
    return lm


def by_block(lm):
    for index, block in enumerate(lm.model.blocks):
        lm.model.blocks[index] = torch.compile(block)
    return lm


@pytest.mark.parametrize("compile_it", [whole, assigned, by_block])
def test_a_compiled_model_is_saved_and_copied(lm, compile_it, tmp_path):
    names = [name for name, _ in lm.model.named_parameters()]
    wrapped = compile_it(lm)
    assert list(parameters_by_name(wrapped.model)) == names
    for name in ("model", "x.gguf"):
        opened = load(wrapped.save(tmp_path / name))
        found = dict(opened.model.named_parameters())
        for own, parameter in parameters_by_name(wrapped.model).items():
            assert torch.equal(found[own], parameter), own
    assert [name for name, _ in wrapped.copy().model.named_parameters()] == names


@pytest.mark.parametrize("compile_it", [whole, by_block])
def test_a_compiled_model_is_trained_and_given_its_weights(lm, compile_it, tmp_path):
    from nbllm.training.start import train

    wrapped = compile_it(lm)
    before = wrapped.model.norm.weight.detach().clone()
    run = train(wrapped, TEXT * 100, steps=2, batch_size=2, sequence_length=16, folder=tmp_path, lr=0.1)
    run.wait()
    assert not torch.equal(wrapped.model.norm.weight, before)
    assert torch.equal(load(run.path).model.norm.weight, wrapped.model.norm.weight)


def test_a_followed_loops_state_fits_a_module_wrapped_or_not():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = state_by_name(torch.compile(plain))
    assert list(state) == list(plain.state_dict())
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    load_state_by_name(torch.compile(other), state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    load_state_by_name(optimizer, state_by_name(optimizer))
    assert unwrapped(torch.compile(plain)) is plain
    assert unwrapped(plain) is plain
