"""A tiny random transformers model, the same weights opened as ours, and texts that a fixed seed draws."""

import copy
import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from nbllm.data import train_tokenizer
from nbllm.evaluation import measuring
from nbllm.lm import LM
from nbllm.models.loading import load_model

CONTEXT = 16
WORDS = "the cat sat on a mat and the dog ran to see naïve 日本 def return if x = 1".split()


def make_texts(count, low=1, high=60, seed=0):
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(low, high))) for _ in range(count)]


@pytest.fixture(scope="session")
def texts():
    return make_texts(12)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(make_texts(30, seed=1), vocab_size=300)


@pytest.fixture(scope="session")
def reference(tokenizer):
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=24, n_layer=2, n_head=3, n_positions=CONTEXT,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def lm(reference, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(folder)
    return LM(load_model(folder), tokenizer)


def perturbed(lm, scale):
    """Return the same model with other weights, as after a little training."""
    other = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return LM(other, lm.tokenizer)


@pytest.fixture
def untrained(tokenizer):
    return LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=CONTEXT
    )


@pytest.fixture(scope="session")
def ids_of(tokenizer):
    """A document's token ids between two end-of-text tokens: (1, position)."""

    def ids_of(text):
        end = tokenizer.eos_token_id
        return torch.tensor([[end, *tokenizer.encode(text), end]])

    return ids_of


@pytest.fixture(scope="session")
def one_by_one(reference, ids_of):
    """A document's nats from transformers' model, token by token, each with what a window shows before.

    Where the document ends within a window, that window begins earlier, so that it is full.
    """

    @torch.no_grad()
    def one_by_one(text, stride):
        input_ids = ids_of(text)
        seq_len, nll_sum, end, begin = input_ids.size(1), 0.0, 1, 0
        while end < seq_len:
            for position in range(end, min(begin + CONTEXT + 1, seq_len)):
                logits = reference(input_ids[:, begin:position]).logits[0, -1].double()
                nll_sum -= float(logits.log_softmax(-1)[input_ids[0, position]])
            end = min(begin + CONTEXT + 1, seq_len)
            begin = max(0, min(begin + stride, seq_len - 1 - CONTEXT))
        return nll_sum

    return one_by_one


@pytest.fixture
def interrupt_after(monkeypatch):
    """Interrupts a measurement, as the notebook's stop button does, when so many examples were answered."""

    def interrupt_after(count):
        real, left = measuring.answer_prepared, [count]

        def answer(lm, requests, **options):
            if left[0] <= 0:
                raise KeyboardInterrupt
            left[0] -= len(requests)
            return real(lm, requests, **options)

        monkeypatch.setattr(measuring, "_groups", lambda sizes, most: [(i, i + 1) for i in range(len(sizes))])
        monkeypatch.setattr(measuring, "answer_prepared", answer)

    return interrupt_after
