import pytest
import torch

from nbllm.models import Decoder, make_config


@pytest.fixture(params=["gpt2", "llama", "qwen2"])
def family(request):
    return request.param


@pytest.fixture
def small(family):
    """A small model whose weights are large enough that every part matters."""
    return make_small(family)


def make_small(family, **changes):
    grouped = {"num_kv_heads": 2} if family != "gpt2" else {}
    shape = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 32}
    return Decoder(make_config(family, **{**shape, **grouped, "initializer_range": 0.2, **changes}))


@pytest.fixture
def make_model():
    return make_small


@pytest.fixture
def tokens():
    return torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(0))
