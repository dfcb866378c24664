import pytest
import torch

from nbllm.nn.attention_backends import attend, measuring
from nbllm.nn.attention_backends.measuring import choose, measured_times


def heads(*shape, seed, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def projected(batch, num_heads, num_kv_heads, length, head_dim, dtype=torch.float32):
    """Queries, keys and values as a fused projection leaves them: views of one buffer."""
    fused = heads(batch, length, num_heads + 2 * num_kv_heads, head_dim, seed=0, dtype=dtype).requires_grad_()
    parts = fused.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    return fused, [part.transpose(1, 2) for part in parts]


def forward_backward(backend, tensors, leaves, **options):
    out = attend(*tensors, backend=backend, **options)
    return [out, *torch.autograd.grad(out, leaves, heads(*out.shape, seed=9, dtype=out.dtype))]


def compare(tensors, leaves, *, atol=2e-5, rtol=1e-4, **options):
    expected = forward_backward("eager", tensors, leaves, **options)
    got = forward_backward("blocked", tensors, leaves, **options)
    for want, have in zip(expected, got, strict=True):
        assert have.dtype == want.dtype
        torch.testing.assert_close(have.float(), want.float(), atol=atol, rtol=rtol)


# 4 queries' memory is exceeded beyond about 8 x head_dim keys: both kept and recomputed weights are met.
@pytest.mark.parametrize("length", [2, 63, 128, 129, 300, 800])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_views_of_one_projection(length, num_heads, num_kv_heads):
    fused, parts = projected(2, num_heads, num_kv_heads, length, 16)
    compare(parts, [fused], causal=True)


@pytest.mark.parametrize("kept", [True, False])
def test_weights_kept_or_computed_again_are_the_same(kept, monkeypatch):
    monkeypatch.setattr("nbllm.nn.attention_backends.blocked._KEEP_WITHIN", 1000 if kept else 0)
    fused, parts = projected(2, 4, 2, 200, 8)
    compare(parts, [fused], causal=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (5, 9), (130, 400)])
def test_fewer_queries_than_keys(causal, num_queries, num_keys):
    tensors = [
        heads(2, 4, num_queries, 8, seed=0).requires_grad_(),
        heads(2, 2, num_keys, 8, seed=1).requires_grad_(),
        heads(2, 2, num_keys, 8, seed=2).requires_grad_(),
    ]
    compare(tensors, tensors, causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["padding", "per head", "added"])
def test_masks(causal, kind):
    length = 150
    fused, parts = projected(2, 4, 2, length, 8)
    real = torch.rand(2, 1, 1, length, generator=torch.Generator().manual_seed(3)) > 0.3
    mask = {
        "padding": real | torch.eye(length, dtype=torch.bool),
        "per head": (heads(4, length, length, seed=4) > 0) | torch.eye(length, dtype=torch.bool),
        "added": heads(1, 4, length, length, seed=5),
    }[kind]
    compare(parts, [fused], causal=causal, mask=mask)


def test_a_trained_mask_gets_its_gradient():
    fused, parts = projected(2, 4, 4, 20, 8)
    bias = heads(4, 20, 20, seed=6).requires_grad_()
    compare(parts, [fused, bias], causal=True, mask=bias)


@pytest.mark.usefixtures("any_matmul")
@pytest.mark.parametrize("length", [40, 200])
def test_bfloat16_in_either_kind_of_matmul(length):
    fused, parts = projected(2, 4, 2, length, 16, dtype=torch.bfloat16)
    exact, exact_parts = projected(2, 4, 2, length, 16)
    expected = forward_backward("eager", exact_parts, [exact], causal=True)
    got = forward_backward("blocked", parts, [fused], causal=True)
    for want, have in zip(expected, got, strict=True):
        assert have.dtype == torch.bfloat16
        assert (have.float() - want).norm() < 0.02 * want.norm()


def test_under_autocast():
    fused, parts = projected(2, 4, 2, 40, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward_backward("blocked", parts, [fused], causal=True)
    assert [part.dtype for part in got] == [torch.bfloat16] * 2


def test_second_backward_of_a_kept_graph_is_the_same():
    fused, parts = projected(2, 4, 2, 200, 8)
    out = attend(*parts, causal=True, backend="blocked")
    grad = heads(*out.shape, seed=9)
    first, second = (torch.autograd.grad(out, fused, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_nothing_is_kept_without_gradients():
    _, parts = projected(2, 4, 2, 200, 8)
    with torch.no_grad():
        got = attend(*parts, causal=True, backend="blocked")
        expected = attend(*parts, causal=True, backend="eager")
    assert got.grad_fn is None
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_the_choice_is_the_faster_and_measured_once(monkeypatch):
    _, (query, key, _) = projected(2, 4, 2, 32, 8)
    monkeypatch.setattr(measuring, "_times", {})
    calls = []

    def measure(shape):
        calls.append(shape)
        return {"sdpa": 2.0, "blocked": 1.0}

    monkeypatch.setattr(measuring, "_measure", measure)
    assert [choose(query, key, causal=True, mask=None) for _ in range(3)] == ["blocked"] * 3
    assert len(calls) == 1
    assert calls[0][:5] == (2, 4, 2, 32, 8)


@pytest.mark.parametrize(
    ("batch", "heads", "length", "measured"), [(8, 6, 256, 8), (64, 8, 512, 8), (4, 8, 2048, 1)]
)
def test_how_much_of_a_batch_is_measured(batch, heads, length, measured, monkeypatch):
    monkeypatch.setattr(measuring, "_times", {})
    shapes = []
    monkeypatch.setattr(measuring, "_measure", lambda shape: shapes.append(shape) or {"sdpa": 1.0})
    query = torch.zeros(1, requires_grad=True).expand(batch, heads, length, 8)
    measured_times(query, query)
    assert shapes[0].batch == measured


def test_only_training_is_measured(monkeypatch):
    monkeypatch.setattr(measuring, "_measure", lambda shape: pytest.fail("measured"))
    monkeypatch.setattr(measuring, "_times", {})
    _, (query, key, _) = projected(2, 4, 2, 32, 8)
    assert choose(query, key, causal=False, mask=None) == "sdpa"
    assert choose(query[:, :, :1], key, causal=True, mask=None) == "sdpa"
    assert choose(query, key, causal=True, mask=torch.ones(32, 32, dtype=torch.bool)) == "sdpa"
    with torch.no_grad():
        assert choose(query, key, causal=True, mask=None) == "sdpa"
    huge = torch.zeros(1, 1, 1, 8, requires_grad=True).expand(4, 64, 8192, 8)
    assert choose(huge, huge, causal=True, mask=None) == "sdpa"


def test_measuring_leaves_the_random_state_alone(monkeypatch):
    monkeypatch.setattr(measuring, "_times", {})
    _, (query, key, _) = projected(2, 4, 2, 32, 8)
    before = torch.get_rng_state()
    times = measured_times(query, key)
    assert set(times) >= {"sdpa", "blocked"}
    assert all(0 < seconds < 10 for seconds in times.values())
    assert torch.equal(torch.get_rng_state(), before)
