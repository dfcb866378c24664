import os
import signal
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from nbllm.nn import kernels
from nbllm.nn.attention_backends import attend
from nbllm.nn.fused_feed_forward import gelu_feed_forward, swiglu
from nbllm.nn.kernels import symbols
from nbllm.nn.normalization import make_norm


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", 0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_a_fork(function):
    """Return how a forked process ends that calls `function`; it is given 20 seconds."""
    process = os.fork()
    if process == 0:
        signal.alarm(20)
        try:
            function()
        finally:
            os._exit(int(sys.exc_info()[0] is not None))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_memory_that_is_not_there_is_left_alone():
    with FakeTensorMode():
        norm, x = make_norm("layer_norm", 8, 1e-5), torch.randn(70, 8)
        assert not kernels.readable(x)
        assert norm(x).shape == x.shape and swiglu(x) is None
        assert gelu_feed_forward(x, x, None, x.t(), None) is None
        heads = torch.randn(1, 2, 70, 8)
        assert attend(heads, heads, heads, causal=True, backend="per_head").shape == heads.shape
    assert not kernels.readable(torch.randn(3, device="meta"))


class Marked(torch.Tensor):
    pass


def test_kinds_of_tensors_that_mean_something_else():
    x = drawn(70, 8)
    assert kernels.readable(x, None, torch.nn.Parameter(x))
    assert not kernels.readable(x, x.as_subclass(Marked))
    assert not kernels.readable(torch._neg_view(x))
    assert not kernels.readable(x.to_sparse())


def test_what_is_traced_is_seen_in_torchs_operations():
    norm, x = make_norm("rms_norm", 8, 1e-5).requires_grad_(False), drawn(70, 8)
    graph = torch.export.export(norm, (x,)).graph
    assert any("rms_norm" in str(node.target) for node in graph.nodes)


def test_a_missing_library_leaves_all_to_torch(monkeypatch):
    with pytest.raises(OSError, match="no library"):
        symbols._library("libnothing*.so")
    names = [name for name in sys.modules if name.startswith(f"{kernels.__name__}.")]
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    monkeypatch.setattr(kernels, "_modules", {})
    errors = kernels.why_not_compiled()
    assert set(errors) == set(kernels.NAMES)
    assert all(error == "OSError: torch has no library libgomp*.so*" for error in errors.values())


def test_the_number_of_threads_may_change_at_any_time(threads):
    norm, x = make_norm("layer_norm", 24, 1e-5), drawn(300, 24).requires_grad_()
    results = []
    for count in (1, 2, 1, 3):
        threads(count)
        out = norm(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *norm.parameters()])))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_of_one_thread_may_call_kernels():
    # Of more threads it may not: then torch's own operations would wait for ever, too.
    norm, x = make_norm("layer_norm", 8, 1e-5), drawn(300, 8)
    expected = norm(x)

    def child():
        torch.set_num_threads(1)
        assert torch.equal(norm(x), expected)

    assert in_a_fork(child) == 0


def test_python_threads_may_call_kernels_at_once():
    gate, wrong = drawn(200, 64), []
    expected = swiglu(gate)
    torch.testing.assert_close(expected, F.silu(gate[:, :32]) * gate[:, 32:])

    def call():
        wrong.extend(_ for _ in range(100) if not torch.equal(swiglu(gate), expected))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
