import pytest
import torch

from nbllm.nn.attention_backends import attend, per_head


def heads(batch, num_heads, num_kv_heads, length, head_dim, seed=0):
    draw = torch.Generator().manual_seed(seed)
    counts = (num_heads, num_kv_heads, num_kv_heads)
    return [torch.randn(batch, count, length, head_dim, generator=draw) for count in counts]


def results(inputs, backend):
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = attend(*inputs, causal=True, backend=backend)
    weight = torch.randn(*out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, weight)]


SHAPES = [(1, 1, 1, 2, 1), (2, 3, 3, 63, 8), (1, 4, 2, 64, 5), (1, 4, 1, 65, 16), (3, 2, 1, 200, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_it_equals_the_reference_in_float64(shape, keep, monkeypatch):
    monkeypatch.setattr(per_head, "_KEEP_WITHIN", keep)
    inputs = heads(*shape)
    expected = results([x.double() for x in inputs], "eager")
    for one, other in zip(results(inputs, "per_head"), expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        each = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            each.append(results(heads(2, 4, 2, 150, 16), "per_head"))
    finally:
        torch.set_num_threads(before)
    for other in each[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each[0], other, strict=True))


def test_strided_heads_and_gradients():
    fused = torch.randn(2, 70, 9 * 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    query, key, value = (part.transpose(1, 2) for part in fused.unflatten(-1, (9, 8)).split((3, 3, 3), dim=2))
    got, expected = (
        torch.autograd.grad(attend(query, key, value, causal=True, backend=name).sum(), fused)[0]
        for name in ("per_head", "eager")
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    columns = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in heads(1, 2, 2, 70, 8)]
    for one, other in zip(results(columns, "per_head"), results(columns, "eager"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_reaches_those_who_see_it(bad):
    query, key, value = heads(1, 2, 2, 70, 8)
    key[0, 1, 40, 3] = bad
    out = attend(query, key, value, causal=True, backend="per_head")
    expected = attend(query, key, value, causal=True, backend="eager")
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert out[0, 1, 40:].isnan().any() and out[0, 0].isfinite().all() and out[0, 1, :40].isfinite().all()


def test_scores_far_apart():
    query, key, value = heads(1, 1, 1, 70, 8)
    got, expected = (attend(300 * query, key, value, causal=True, backend=n) for n in ("per_head", "eager"))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_the_kernel_does_not_compute_is_computed_by_blocks(dtype):
    inputs = [x.to(dtype) for x in heads(1, 2, 2, 70, 8)]
    assert not per_head.serves(*inputs, None, True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(results(inputs, "per_head"), results(inputs, "blocked"), strict=True)
    )
    query, key, value = heads(1, 2, 2, 70, 8)
    assert not per_head.serves(query, key, value, torch.ones(70, 70, dtype=torch.bool), True)
    assert not per_head.serves(query[:, :, :9], key, value, None, True)
    assert not per_head.serves(query, key, value, None, False)
