import pytest
import torch

from nbllm import data
from nbllm.models import Decoder, make_config

ODD = [
    "", " ", "   ", "\t", "日本語のテキスト 123", "👩‍👩‍👧‍👦 🎉🎉", "  12  34   5", "naïve café e\u0301", "½ ² ③ ٣٤٥",
    "<|im_start|>user\nhi<|im_end|>", "a\r\nb", "\u00a0x\u2003y", "مرحبا بالعالم", "Привет, мир", "don't WE'LL I'M",
]  # fmt: skip


@pytest.fixture(params=["gpt2", "llama", "qwen2"])
def family(request):
    return request.param


@pytest.fixture
def small(family):
    """A small model whose weights are large enough that every part matters."""
    return make_small(family)


def make_small(family, **changes):
    grouped = (
        {"num_kv_heads": 2} if family in ("llama", "qwen2", "phi", "mistral", "mixtral", "qwen3") else {}
    )
    shape = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 32}
    return Decoder(make_config(family, **{**shape, **grouped, "initializer_range": 0.2, **changes}))


@pytest.fixture
def make_model():
    return make_small


@pytest.fixture
def tokens():
    return torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def real_lines():
    """Two thousand lines for tokenizers: of Python's reference and library, and what is odd."""
    found = [
        line
        for name in ("pydocs", "pystdlib")
        for text in data.load(name)["text"]
        for line in text.splitlines()
    ]
    return found[:: len(found) // 2000][: 2000 - len(ODD)] + ODD
