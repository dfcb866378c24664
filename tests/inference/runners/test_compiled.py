"""The compiled decoding kernel against the model as it is called."""

import gc
import threading

import pytest
import torch
import torch.nn.functional as F

from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import generate_ids
from nbllm.inference.runners import compiled
from nbllm.inference.runners.base import Batch, Step
from nbllm.inference.runners.compiled import BoundKernel, CompiledRunner
from nbllm.inference.workspace import Workspace, release, workspace_of
from nbllm.lm import LM
from nbllm.nn import kernels

from ..conftest import randomized, read, small_config

GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)
SHAPES = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "qwen2": ("llama", dict(attention_bias=True, attention_output_bias=False)),
    "relu, one key/value head": ("gpt2", dict(activation="relu", num_kv_heads=1)),
    "gelu, gated": ("gpt2", dict(activation="gelu", gated=True, intermediate_size=52)),
    "odd sizes": (
        "gpt2",
        dict(hidden_size=42, num_heads=3, head_dim=10, intermediate_size=37, vocab_size=301),
    ),
    "long": ("llama", dict(max_positions=256)),
    "layer norm and rotary": ("llama", dict(norm="layer_norm", activation="gelu_tanh", head_dim=6)),
}


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)


def make(name, dtype=torch.float32):
    family, changes = SHAPES[name]
    return randomized(small_config(family, **changes)).to(dtype)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("lengths", [[9], [5, 9, 1, 7]])
def test_a_step_is_what_the_model_computes(name, lengths):
    model = make(name)
    assert CompiledRunner.serves(model)
    computed, called = read(model, lengths, 5)
    assert called.std() > 0.5
    torch.testing.assert_close(computed, called, rtol=4e-5, atol=4e-5)


@pytest.mark.parametrize("lengths", [[127], [200, 64, 130, 7]])
def test_a_context_of_several_chunks(lengths):
    computed, called = read(make("long"), lengths, 3)
    torch.testing.assert_close(computed, called, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_weights_are_read_exactly(name):
    half = make(name, torch.bfloat16)
    computed, called = read(half, [9, 4], 5)
    exact = read(make(name, torch.bfloat16).float(), [9, 4], 5)[1]
    # What is kept of earlier tokens is rounded to bfloat16, and nothing else: nearer than the model itself comes.
    ours, torchs = (computed - exact).abs().mean(), (called.float() - exact).abs().mean()
    assert ours < 0.02 * exact.std() and ours < torchs


@pytest.mark.parametrize("name", ["llama", "long", "odd sizes", "gelu, gated"])
@pytest.mark.parametrize("threads", [1, 5])
def test_steps_from_the_same_cache_give_the_same_bits_for_any_number_of_threads(name, threads):
    """Of the steps alone: torch's own matmuls, which read the prompt, may depend on the number of threads."""
    model, before = make(name), torch.get_num_threads()
    lengths = [150, 66, 3] if name == "long" else [9, 3]
    columns, ids = max(lengths), torch.arange(5)[:, None].expand(-1, len(lengths))
    drawn = torch.Generator().manual_seed(0)

    def steps_with(threads, kept):
        torch.set_num_threads(threads)
        with torch.inference_mode(), workspace_of(model) as workspace:
            cache = workspace.cache(model, len(lengths), columns + len(ids))
            cache.length = columns
            for buffer, own in zip(cache.buffers, kept, strict=True):
                buffer[:, :, :, :columns] = own
            kernel = BoundKernel(model, workspace, Batch([], columns - torch.tensor(lengths), cache))
            return [kernel(row[:, None].tolist()).clone() for row in ids]

    shape = list(model.make_cache(len(lengths), columns).buffers[0].shape)
    kept = [torch.randn(shape, generator=drawn) for _ in range(model.config.num_layers)]
    try:
        expected = steps_with(2, kept)
        assert all(map(torch.equal, steps_with(threads, kept), expected))
    finally:
        torch.set_num_threads(before)
    assert len({tuple(logits.flatten().tolist()) for logits in expected}) == len(ids)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(dtype):
    model = make("llama")
    expected = generate_ids(model, [[1, 2, 3]] * 12, GREEDY, eos_id=None)
    release(model)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        assert generate_ids(model, [[1, 2, 3]] * 12, GREEDY, eos_id=None) == expected
    finally:
        torch.set_default_dtype(before)


def test_the_kernel_is_loaded_before_anything_is_streamed(monkeypatch):
    """For a line says that it is, and is taken back; a streamed text would lose its first words to that."""
    events, compiled = [], kernels.compiled
    monkeypatch.setattr(kernels, "compiled", lambda name: events.append(name) or compiled(name))
    generate_ids(make("llama"), [[1, 2]], GREEDY, eos_id=None, on_token=lambda *_: events.append("token"))
    assert events[0] == "decoding_float32" and "token" in events


def test_a_chat_loads_the_kernel_in_the_calling_thread(monkeypatch, tokenizer):
    loaded = []
    monkeypatch.setattr(kernels, "compiled", lambda name: loaded.append(threading.current_thread()))
    LM(make("llama"), tokenizer).chat("the cat")
    assert loaded == [threading.main_thread()]


def test_threads_may_be_added_during_a_generation():
    model, before = make("llama"), torch.get_num_threads()
    expected = generate_ids(model, [[1, 2, 3]], GREEDY, eos_id=None)
    try:
        torch.set_num_threads(1)
        more = generate_ids(
            model, [[1, 2, 3]], GREEDY, eos_id=None, on_token=lambda *_: torch.set_num_threads(5)
        )
    finally:
        torch.set_num_threads(before)
    assert more == expected


@pytest.mark.parametrize("length", [8, 150])
def test_a_row_gets_the_same_bits_in_any_batch(length):
    """So a text does not depend on what is written beside it."""
    model, generator = make("long"), torch.Generator().manual_seed(0)
    shape = model.make_cache(1, length).buffers[0].shape
    kept = [torch.randn(shape, generator=generator) for _ in range(model.config.num_layers)]
    with torch.inference_mode(), workspace_of(model) as workspace:

        def logits(padding):
            cache = workspace.cache(model, len(padding), max(padding) + length + 1)
            cache.length = max(padding) + length
            for buffer, own in zip(cache.buffers, kept, strict=True):
                for row, columns in enumerate(padding):
                    buffer[:, row : row + 1, :, columns : columns + length] = own
            batch = Batch([], torch.tensor(padding), cache)
            return BoundKernel(model, workspace, batch)([[7]] * len(padding)).clone()

        alone = logits([0])
        assert torch.equal(logits([0, 0, 0]), alone.expand(3, -1, -1))
        assert torch.equal(logits([0, 70])[1], alone[0])


def changed(change):
    model = make("llama")
    change(model)
    return model


def test_a_model_that_the_kernel_does_not_compute_is_called():
    model = changed(lambda model: setattr(model.blocks[0].feed_forward, "activation", F.relu))
    (served,), (called,) = (
        generate_ids(each, [[1, 2, 3]], GREEDY, eos_id=None) for each in (make("llama"), model)
    )
    assert len(called) == 12 and called != served


def test_under_autocast_the_model_is_called():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not CompiledRunner.serves(make("llama"))


def test_small_models_are_called(monkeypatch):
    model = make("llama")
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", model.num_parameters + 1)
    assert not CompiledRunner.serves(model)


def test_prompts_and_steps_of_many_tokens_are_called(monkeypatch):
    model, calls = make("llama"), []
    monkeypatch.setattr(
        BoundKernel, "__call__", lambda self, tokens: calls.append(tokens) or torch.zeros(1, 1, 1)
    )
    with torch.inference_mode():
        runner = CompiledRunner(model, Workspace())
        for rows in (compiled.MAX_TOKENS, compiled.MAX_TOKENS + 1):
            batch = Batch([], torch.zeros(rows, dtype=torch.int64), model.make_cache(rows, 9))
            runner.run(Step(batch, [[1]] * rows))
            assert not calls, "the cache was empty: a prompt"
            runner.run(Step(batch, [[1]] * rows))
            assert len(calls) == (rows <= compiled.MAX_TOKENS)
            calls.clear()


def test_new_weights_are_read_at_once():
    model, other = make("llama"), changed(lambda model: model.initialize(9))
    answer, expected = (generate_ids(each, [[1, 2, 3]], GREEDY, eos_id=None) for each in (model, other))
    assert answer != expected
    with torch.no_grad():
        for weight, new in zip(model.parameters(), other.parameters(), strict=True):
            weight.copy_(new)
    assert generate_ids(model, [[1, 2, 3]], GREEDY, eos_id=None) == expected
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(weight.detach() * 0.5))
    for weight in other.parameters():
        weight.data *= 0.5
    assert generate_ids(model, [[1, 2, 3]], GREEDY, eos_id=None) == generate_ids(
        other, [[1, 2, 3]], GREEDY, eos_id=None
    )


@pytest.mark.parametrize("at", [1, 3], ids=["before addresses are taken", "after"])
def test_weights_may_be_replaced_during_a_generation(at):
    """They are no longer side by side, so the kernel must not read on from the first of them."""
    model, written = make("llama"), []

    def replace(_, token):
        written.append(token)
        if len(written) != at:
            return
        for weight in model.parameters():
            weight.data = torch.zeros_like(weight)
        gc.collect()

    assert len(generate_ids(model, [[1, 2, 3]], GREEDY, eos_id=None, on_token=replace)[0]) == 12


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokens_read_together_get_the_bits_that_they_get_one_by_one(name):
    model, ids = make(name), torch.arange(3, 11).tolist()
    with torch.inference_mode():
        one, together = (
            Batch([], torch.zeros(1, dtype=torch.int64), model.make_cache(1, 20)) for _ in range(2)
        )
        kernel = BoundKernel(model, Workspace(), one)
        alone = torch.stack([kernel([[token]])[0, 0].clone() for token in ids])
        assert len(ids) == kernel.max_rows
        assert torch.equal(BoundKernel(model, Workspace(), together)([ids])[0], alone)
    for own, other in zip(one.cache.buffers, together.cache.buffers, strict=True):
        assert torch.equal(own, other)


def test_what_does_not_fit_is_refused():
    model = make("llama")
    with torch.inference_mode():
        kernel = BoundKernel(
            model, Workspace(), Batch([], torch.zeros(1, dtype=torch.int64), model.make_cache(1, 2))
        )
        for wrong in ([[1] * (kernel.max_rows + 1)], [[1], [2]], [[1, 2, 3]]):
            with pytest.raises(ValueError, match=r"too small|full"):
                kernel(wrong)
