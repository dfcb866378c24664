import pytest
import torch
import torch.nn.functional as F
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from nbllm.nn import kernels
from nbllm.nn.normalization import NORMS, add_and_normalize, keep_and_normalize, make_norm


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", 0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(kind, size):
    norm = make_norm(kind, size, 1e-5)
    for place, parameter in enumerate(norm.parameters()):
        parameter.data = drawn(size, seed=10 + place)
    return norm


def reference(kind, x, weight, bias=None):
    if kind.startswith("layer_norm"):
        return F.layer_norm(x, weight.shape, weight, bias, 1e-5)
    if kind == "rms_norm_offset":
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), weight.shape, 1 + weight.to(wide), 1e-5).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, 1e-5)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", [(1, 3), (1, 33), (3, 5, 17), (130, 48)])
@pytest.mark.parametrize("adds", [False, True])
def test_results_and_gradients_are_those_of_float64(kind, shape, adds):
    norm = norm_of(kind, shape[-1])
    inputs = [3 * drawn(*shape) + 1, *([drawn(*shape, seed=1)] if adds else [])]
    narrow = [x.requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in (*inputs, *norm.parameters())]
    out = add_and_normalize(norm, *narrow) if adds else (norm(narrow[0]),)
    added = sum(wide[: len(inputs)])
    expected = reference(kind, added, *wide[len(inputs) :])
    expected = (added, expected) if adds else (expected,)
    grads = [drawn(*shape, seed=5 + place) for place in range(len(out))]
    got = [*out, *torch.autograd.grad(out, [*narrow, *norm.parameters()], grads)]
    wanted = [*expected, *torch.autograd.grad(expected, wide, [grad.double() for grad in grads])]
    for one, other in zip(got, wanted, strict=True):
        scale = float(other.detach().abs().max()) + 1e-3
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("used", [0, 1])
def test_only_one_of_both_results_is_used(kind, used):
    norm, x, branch = norm_of(kind, 8), drawn(70, 8).requires_grad_(), drawn(70, 8, seed=1).requires_grad_()
    got = torch.autograd.grad(add_and_normalize(norm, x, branch)[used].square().sum(), [x, branch])
    added = x + branch
    out = (added, reference(kind, added, *norm.parameters()))[used]
    for one, other in zip(got, torch.autograd.grad(out.square().sum(), [x, branch]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
def test_not_finite_stays_in_its_row(kind):
    x = drawn(3, 8)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    out = norm_of(kind, 8)(x)
    assert out[0].isfinite().all() and out[1].isnan().all() and not out[2].isfinite().all()


@pytest.mark.parametrize("kind", NORMS)
def test_not_contiguous_frozen_and_without_gradients(kind):
    norm = norm_of(kind, 70).requires_grad_(False)
    x = drawn(70, 8).requires_grad_()
    out = norm(x.t())
    torch.testing.assert_close(out, reference(kind, x.t(), *norm.parameters()), rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert x.grad is not None and all(parameter.grad is None for parameter in norm.parameters())
    with torch.no_grad():
        assert norm(x.t()).grad_fn is None


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("adds", [False, True])
def test_bfloat16_is_computed_in_float32(kind, adds):
    """So results and gradients are no farther from the exact ones than torch's own."""
    norm = norm_of(kind, 48).bfloat16()
    half = [x.bfloat16().requires_grad_() for x in (3 * drawn(130, 48) + 1, drawn(130, 48, seed=1))]
    wide = [x.detach().double().requires_grad_() for x in (*half, *norm.parameters())]
    grads = [drawn(130, 48, seed=5 + place).bfloat16() for place in range(2)]

    def by(norm_of_sum, added, leaves):
        pair = (added, norm_of_sum(added))
        return [*pair, *torch.autograd.grad(pair, leaves, [grad.to(added) for grad in grads])]

    leaves = [*half, *norm.parameters()] if adds else [half[0], *norm.parameters()]
    pair = add_and_normalize(norm, *half) if adds else keep_and_normalize(norm, half[0])
    ours = [*pair, *torch.autograd.grad(pair, leaves, grads)]
    torchs = by(lambda x: reference(kind, x, *norm.parameters()), sum(half) if adds else half[0] * 1, leaves)
    leaves = wide if adds else [wide[0], *wide[2:]]
    exact = by(lambda x: reference(kind, x, *wide[2:]), sum(wide[:2]) if adds else wide[0] * 1, leaves)
    for mine, other, right in zip(ours, torchs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        distances = [
            float((found.double() - right).detach().norm() / right.detach().norm()) for found in (mine, other)
        ]
        assert distances[0] < max(1.2 * distances[1], 0.003), distances


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_torchs(kind, dtype):
    norm, x = norm_of(kind, 8).to(dtype), drawn(70, 8).to(dtype)
    torch.testing.assert_close(norm(x), reference(kind, x, *norm.parameters()), rtol=0, atol=0)
    added, out = add_and_normalize(norm, x, x)
    assert torch.equal(added, x + x) and torch.equal(out, norm(x + x))


@pytest.mark.parametrize("kind", NORMS)
def test_autocast_and_missing_kernels_are_torchs(kind, monkeypatch):
    norm, x = norm_of(kind, 8), drawn(70, 8)
    expected = reference(kind, x, *norm.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(norm(x), reference(kind, x, *norm.parameters()), rtol=0, atol=0)
    monkeypatch.setattr(kernels, "compiled", lambda name: None)
    assert torch.equal(norm(x), expected)


@pytest.mark.parametrize("kind", NORMS)
def test_a_hook_on_the_norm_is_called(kind):
    norm, seen = norm_of(kind, 8), []
    norm.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    x = drawn(70, 8)
    added, out = add_and_normalize(norm, x, x)
    assert torch.equal(added, 2 * x) and seen[0] is out


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("fewest", [0, 1 << 60])
@pytest.mark.parametrize("used", ["both", "kept", "normal"])
def test_what_is_kept_beside_its_norm_and_the_gradient_by_both(kind, fewest, used, monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", fewest)
    norm, x = norm_of(kind, 8), drawn(70, 8).requires_grad_()
    kept, normal = keep_and_normalize(norm, x)
    assert torch.equal(kept, x)
    pairs = {"both": (kept, normal), "kept": (kept,), "normal": (normal,)}
    got = torch.autograd.grad(sum(y.square().sum() for y in pairs[used]), x)[0]
    plain = {"kept": x, "normal": reference(kind, x, *norm.parameters())}
    wanted = [plain[name] for name in plain if used in (name, "both")]
    grad_x = torch.autograd.grad(sum(y.square().sum() for y in wanted), x)[0]
    torch.testing.assert_close(got, grad_x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NORMS)
def test_a_hook_on_the_norm_of_what_is_kept_is_called(kind):
    norm, seen = norm_of(kind, 8), []
    norm.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    x = drawn(70, 8)
    kept, out = keep_and_normalize(norm, x)
    assert kept is x and seen[0] is out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fewest", [0, 1 << 60])
def test_a_weight_that_is_stored_less_one_scales_as_gemma_does(dtype, fewest, monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", fewest)
    norm, x = norm_of("rms_norm_offset", 48).to(dtype), (3 * drawn(130, 48)).to(dtype)
    theirs = Gemma2RMSNorm(48, eps=1e-5)
    theirs.weight = norm.weight
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(norm(x), theirs(x), rtol=tolerance, atol=1e-6)
