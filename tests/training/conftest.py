from __future__ import annotations

import pytest

import nbllm as nb
from nbllm.data.token_store import TokenStore
from nbllm.lm import LM


@pytest.fixture(scope="session")
def texts():
    return nb.data.load("pydocs").select(range(12))


@pytest.fixture(scope="session")
def tokenizer(texts):
    return nb.data.train_tokenizer(texts, vocab_size=320)


@pytest.fixture(scope="session")
def store(texts, tokenizer, tmp_path_factory) -> TokenStore:
    return nb.data.pack(texts.select(range(8)), tokenizer, folder=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def held_out(texts, tokenizer, tmp_path_factory) -> TokenStore:
    return nb.data.pack(texts.select(range(8, 12)), tokenizer, folder=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def lm(tokenizer) -> LM:
    return LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )


@pytest.fixture
def config() -> dict[str, object]:
    """A run of a second or two."""
    return {
        "steps": 12,
        "batch_size": 2,
        "sequence_length": 32,
        "lr": 3e-3,
        "validation_interval": 6,
        "validation_tokens": 200,
        "sample_interval": 6,
        "sample_tokens": 4,
        "checkpoint_interval": 4,
        "precision": "float32",
        "num_threads": 1,
    }
