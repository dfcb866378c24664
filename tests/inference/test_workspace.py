"""What one generation leaves for the next."""

import gc
import threading

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.inference import workspace
from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import generate_ids
from nbllm.inference.runners import compiled
from nbllm.inference.workspace import held_bytes
from nbllm.lm import LM

from .conftest import randomized, small_config

GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


@pytest.fixture(params=["called", "compiled"], autouse=True)
def runner(request, monkeypatch):
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0 if request.param == "compiled" else 1 << 62)


def make(name):
    return randomized(small_config(name))


def test_kept_memory_is_reported_and_released(tokenizer):
    lm = LM(make("llama"), tokenizer)
    assert lm.release() == 0
    first = lm.generate("the cat", temperature=0, max_new_tokens=20)
    held = held_bytes(lm.model)
    assert held > 0 and "release() gives it back" in lm._repr_html_()
    assert lm.generate("the cat", temperature=0, max_new_tokens=9) == lm.generate(
        "the cat", temperature=0, max_new_tokens=9
    )
    assert held_bytes(lm.model) == held, "a shorter text needs no more"
    assert lm.release() == held and held_bytes(lm.model) == 0
    assert "release()" not in lm._repr_html_()
    assert lm.generate("the cat", temperature=0, max_new_tokens=20) == first


def test_a_longer_text_gets_a_longer_cache():
    model = make("llama")
    with torch.inference_mode(), workspace.workspace_of(model) as memory:
        short = memory.cache(model, 1, 10)
        assert memory.cache(model, 1, 8) is short
        assert memory.cache(model, 1, 11).max_length == 11
        assert memory.cache(model, 2, 11).buffers[0].shape[1] == 2


def test_concurrent_generations_share_no_memory():
    model, prompts = make("llama"), [[1, 2, 3], [9, 8], [100], [7, 7, 7, 7]]
    long = GREEDY.replace(max_new_tokens=50)
    expected = [generate_ids(model, [prompt], long, eos_id=None)[0] for prompt in prompts]
    found = {}

    def write(index):
        for _ in range(5):
            found.setdefault(index, []).append(generate_ids(model, [prompts[index]], long, eos_id=None)[0])

    threads = [threading.Thread(target=write, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[index] == [expected[index]] * 5 for index in range(len(prompts)))


@pytest.mark.parametrize(
    "name", ["norm.weight", "blocks.0.attention.value.weight", "blocks.0.attention.key.weight"]
)
def test_weights_that_are_not_finite_are_refused_and_leave_no_cache(name):
    model = make("llama")
    with torch.no_grad():
        model.get_parameter(name).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        generate_ids(model, [[1, 2, 3]], GREEDY, eos_id=None)
    model.initialize(1)
    assert len(generate_ids(model, [[1, 2, 3]], GREEDY, eos_id=None)[0]) == 12


def test_a_deleted_model_keeps_no_memory():
    model = make("llama")
    generate_ids(model, [[1]], GREEDY, eos_id=None)
    before = len(workspace._kept)
    del model
    gc.collect()
    assert len(workspace._kept) < before
