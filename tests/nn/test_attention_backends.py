import math

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from nbllm.core.errors import UserError
from nbllm.nn.attention_backends import BACKENDS, attend, use_backend
from nbllm.nn.attention_backends.eager import attention_weights

OTHERS = sorted(set(BACKENDS) - {"eager"})


def heads(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def inputs(num_heads=4, num_kv_heads=2, num_queries=7, num_keys=7):
    query = heads(2, num_heads, num_queries, 8, seed=0)
    key = heads(2, num_kv_heads, num_keys, 8, seed=1)
    value = heads(2, num_kv_heads, num_keys, 8, seed=2)
    return [tensor.requires_grad_() for tensor in (query, key, value)]


def by_loops(query, key, value, *, visible, bias=None):
    """The formula, one query at a time."""
    out = torch.zeros_like(query)
    groups = query.shape[1] // key.shape[1]
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            for i in range(query.shape[2]):
                keys = [j for j in range(key.shape[2]) if visible(batch, i, j)]
                scores = [
                    float(query[batch, head, i] @ key[batch, head // groups, j]) / math.sqrt(8)
                    + (float(bias[head, i, j]) if bias is not None else 0.0)
                    for j in keys
                ]
                total = sum(math.exp(score) for score in scores)
                for j, score in zip(keys, scores, strict=True):
                    out[batch, head, i] += math.exp(score) / total * value[batch, head // groups, j]
    return out


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize(("num_queries", "num_keys"), [(7, 7), (3, 7), (1, 7)])
def test_causal_is_aligned_to_the_last_key(backend, num_queries, num_keys):
    query, key, value = (t.detach() for t in inputs(num_queries=num_queries, num_keys=num_keys))
    past = num_keys - num_queries
    expected = by_loops(query, key, value, visible=lambda b, i, j: j <= i + past)
    got = attend(query, key, value, causal=True, backend=backend)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_masks_and_causality_together(backend):
    query, key, value = (t.detach() for t in inputs())
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1]], dtype=torch.bool)
    expected = by_loops(query, key, value, visible=lambda b, i, j: j <= i and bool(real[b, j]))
    got = attend(query, key, value, causal=True, mask=real[:, None, None, :], backend=backend)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", [*sorted(BACKENDS), "auto"])
@pytest.mark.parametrize("masked", [True, False])
def test_scores_are_bounded_whichever_backend_is_asked_for(backend, masked):
    """As Gemma 2 does, before the mask is applied."""
    query, key, value = inputs()
    real = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1]]) if masked else torch.ones(2, 7)
    visible = real.bool()[:, None, None, :] & torch.ones(7, 7, dtype=torch.bool).tril()
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    hidden = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    expected = eager_attention_forward(module, query, key, value, hidden, scaling=0.7, softcap=0.9)[0]
    mask = real.bool()[:, None, None, :] if masked else None
    with use_backend(backend):
        got = attend(query, key, value, causal=True, mask=mask, scale=0.7, softcap=0.9)
    torch.testing.assert_close(got, expected.transpose(1, 2))
    pairs = [torch.autograd.grad(out.square().sum(), (query, key, value)) for out in (got, expected)]
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("causal", [True, False])
def test_a_floating_mask_is_added_to_the_scores(backend, causal):
    query, key, value = (t.detach() for t in inputs())
    bias = heads(4, 7, 7, seed=3)
    expected = by_loops(query, key, value, visible=lambda b, i, j: not causal or j <= i, bias=bias)
    got = attend(query, key, value, causal=causal, mask=bias, backend=backend)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("length", [5, 96, 200])
def test_gradients_equal_the_reference(backend, num_heads, num_kv_heads, length):
    results = []
    for name in ("eager", backend):
        tensors = inputs(num_heads, num_kv_heads, length, length)
        out = attend(*tensors, causal=True, scale=0.3, backend=name)
        out.backward(heads(*out.shape, seed=4))
        results.append([out.detach(), *(tensor.grad for tensor in tensors)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", OTHERS)
def test_bfloat16_stays_near_the_reference(backend):
    query, key, value = (t.detach() for t in inputs())
    exact = attend(query, key, value, causal=True, backend="eager")
    got = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), causal=True, backend=backend)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, atol=0.05, rtol=0.05)


def test_weights_sum_to_one():
    query, key, _ = inputs()
    weights = attention_weights(query, key, None, True, 0.3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 7))
    assert not weights.triu(1).any()


def test_the_context_manager_decides_for_its_block_only():
    query, key, value = inputs()
    seen = []

    @BACKENDS.register("probe")
    def probe(query, key, value, mask, causal, scale):
        seen.append(scale)
        return query

    try:
        with use_backend("probe"):
            attend(query, key, value, causal=True, backend="eager")
        attend(query, key, value, causal=True)
    finally:
        del BACKENDS._entries["probe"]
    assert seen == [pytest.approx(8**-0.5)]


def test_an_unknown_backend_is_named():
    query, key, value = inputs()
    with pytest.raises(UserError, match=r"eagre.*\n.*Did you mean 'eager'"):
        attend(query, key, value, causal=True, backend="eagre")
    with pytest.raises(UserError, match="eagre"), use_backend("eagre"):
        pass


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_never_lost(backend, dtype):
    """torch's kernel alone gives 0 for fewer than 16 keys where the CPU has AVX-512, for fewer than 8 with AVX2."""
    for num_keys in range(1, 40):
        for num_queries in {1, num_keys}:
            query, key, value = (
                torch.ones(2, 3, count, 8, dtype=dtype) for count in (num_queries, num_keys, num_keys)
            )
            for mask in (None, torch.ones(2, 1, 1, num_keys, dtype=torch.bool)):
                out = attend(
                    query, key * torch.nan, value, causal=num_queries > 1, mask=mask, backend=backend
                )
                assert out.isnan().all(), (num_queries, num_keys)
