"""Random transformers models, as small or as large as asked, saved where ours can open them."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

GPT2 = dict(vocab_size=131, n_embd=48, n_layer=3, n_head=4, n_positions=64)
LLAMA = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
TINY = {
    "gpt2": GPT2,
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False},
    "gpt2-inner-relu": {**GPT2, "n_inner": 80, "activation_function": "relu"},
    "llama": LLAMA,
    "llama-grouped-tied": {
        **LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_theta": 5e5,
    },
    "llama-biased-wide-heads": {
        **LLAMA, "num_key_value_heads": 1, "head_dim": 20, "attention_bias": True, "mlp_bias": True,
        "rms_norm_eps": 1e-5,
    },
    "qwen2": {**LLAMA, "num_key_value_heads": 4},
    "qwen2-grouped-tied": {
        **LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}  # fmt: skip


def _make_reference(family, seed=0, **settings):
    """A model with weights large enough that every part matters, biases and norms included."""
    settings = {"bos_token_id": 0, "eos_token_id": 0, **settings}
    if family.startswith("gpt2"):
        settings |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**settings))
    elif family.startswith("qwen2"):
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.05, generator=generator)
            else:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.1, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def make_reference():
    return _make_reference


@pytest.fixture(scope="session", params=sorted(TINY))
def tiny(request):
    return _make_reference(request.param, **TINY[request.param])
