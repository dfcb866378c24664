"""Tiny models whose every weight is random, and a byte-level tokenizer whose tokens divide characters."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nbllm.inference.runners.base import Batch
from nbllm.inference.runners.compiled import BoundKernel
from nbllm.inference.workspace import workspace_of
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder

EOS = "<|endoftext|>"


@pytest.fixture(scope="session")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the cat sat on the mat and the dog sat on the log", "naïve café"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=EOS)


def small_config(family, **changes):
    shape = dict(
        family=family, vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, max_positions=64,
        initializer_range=0.4,
    )  # fmt: skip
    if family == "llama":
        shape.update(
            num_kv_heads=2, positions="rotary", norm="rms_norm", activation="silu", gated=True,
            attention_bias=False, feed_forward_bias=False, tie_embeddings=False,
        )  # fmt: skip
    return ModelConfig(**{**shape, **changes})


def randomized(config):
    """Return a model whose biases and norms are not 0 and 1: those would show nothing."""
    model = Decoder(config, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return model.eval()


def read(model, lengths, count):
    """Return the logits after each of `count` more tokens, from the kernel and from the model as it is called."""
    vocabulary, columns = model.config.vocab_size, max(lengths)
    padding = columns - torch.tensor(lengths)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (len(lengths), columns + count), generator=generator)
    mask = torch.arange(columns + count)[None] >= padding[:, None]
    positions = (torch.arange(columns + count)[None] - padding[:, None]).clamp(min=0)
    computed, called = [], []
    with torch.inference_mode(), workspace_of(model) as workspace:
        cache = workspace.cache(model, len(lengths), columns + count)
        first = ids[:, :columns]
        model.hidden(first, cache=cache, positions=positions[:, :columns], attention_mask=mask[:, :columns])
        kernel = BoundKernel(model, workspace, Batch([], padding, cache))
        for place in range(columns, columns + count):
            computed.append(kernel(ids[:, place, None].tolist())[:, 0].clone())
            upto = slice(0, place + 1)
            hidden = model.hidden(ids[:, upto], positions=positions[:, upto], attention_mask=mask[:, upto])
            called.append(model.logits(hidden[:, -1]))
    return torch.stack(computed), torch.stack(called)


@pytest.fixture(scope="session")
def make_model():
    def make(family="gpt2", **changes):
        return Decoder(small_config(family, **changes), seed=12)

    return make


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="session")
def gpt2(make_model):
    return make_model("gpt2")
