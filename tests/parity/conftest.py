"""Random transformers models, as small or as large as asked, saved where ours can open them."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity.weights import draw_weights

GPT2 = dict(vocab_size=131, n_embd=48, n_layer=3, n_head=4, n_positions=64)
LLAMA = dict(vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
BLOOM = dict(vocab_size=131, hidden_size=48, n_layer=3, n_head=4)
OPT = dict(
    vocab_size=131, hidden_size=48, word_embed_proj_dim=48, ffn_dim=80, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64, dropout=0.0, pad_token_id=None,  # the padding token's vector would have no gradient
)  # fmt: skip
NEOX = {**LLAMA, "num_attention_heads": 3}  # 4 of 16 components of a head are rotated
GPTJ = dict(vocab_size=131, n_embd=48, n_layer=3, n_head=3, n_positions=64, rotary_dim=8)
GEMMA = dict(
    vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=20, sliding_window=4, query_pre_attn_scalar=20, max_position_embeddings=64,
    attn_logit_softcapping=2.0, final_logit_softcapping=3.0, pad_token_id=None,
)  # fmt: skip
GEMMA3 = {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None}
# The names begin with the family's.
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
    "bloom": BLOOM,
    "bloom-untied-6-heads": {**BLOOM, "n_head": 6, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-6},
    "opt": OPT,
    "opt-untied-without-biases": {
        **OPT, "enable_bias": False, "tie_word_embeddings": False, "activation_function": "gelu",
    },
    "opt-post-projected": {
        **OPT, "word_embed_proj_dim": 20, "do_layer_norm_before": False, "activation_function": "quick_gelu",
    },
    "opt-projected-untied": {**OPT, "word_embed_proj_dim": 20, "tie_word_embeddings": False},
    "glm": {**LLAMA, "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-5, "pad_token_id": None},
    "glm-without-biases-tied-whole": {
        **LLAMA, "num_key_value_heads": 1, "head_dim": 20, "rms_norm_eps": 1e-5, "pad_token_id": None,
        "attention_bias": False, "tie_word_embeddings": True, "partial_rotary_factor": 1.0,
    },
    "gpt_neox": NEOX,
    "gpt_neox-sequential-tied": {
        **NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True,
        "rotary_pct": 0.5, "rotary_emb_base": 500.0,
    },
    "gptj": GPTJ,
    "gptj-inner-all-rotated": {**GPTJ, "n_inner": 80, "rotary_dim": 16},
    "phi": {**LLAMA, "num_attention_heads": 3},
    "phi-grouped": {
        **LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2, "partial_rotary_factor": 0.25,
        "hidden_act": "gelu",
    },
    "mistral": {**LLAMA, "num_key_value_heads": 2, "sliding_window": 4},
    "mistral-whole-wide-heads": {**LLAMA, "num_key_value_heads": 2, "head_dim": 20, "sliding_window": None},
    "mixtral": {
        **LLAMA, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5,
    },
    # Of one expert alone the weight is 1, and the router's gradient zero but for rounding.
    "mixtral-all-three-tied": {
        **LLAMA, "num_key_value_heads": 4, "num_local_experts": 3, "num_experts_per_tok": 3, "head_dim": 20,
        "tie_word_embeddings": True, "router_aux_loss_coef": 0.0,
    },
    "gemma2": GEMMA,
    "gemma2-all-full-biased-untied": {
        **GEMMA, "layer_types": ["full_attention"] * 3, "attention_bias": True, "tie_word_embeddings": False,
        "query_pre_attn_scalar": 12, "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "gemma3_text": {**GEMMA3, "sliding_window_pattern": 2},
    "gemma3_text-scaled": {
        **GEMMA3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "final_logit_softcapping": 2.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 12,
    },
    "qwen3": {**LLAMA, "num_key_value_heads": 2, "head_dim": 20},
    "qwen3-biased-tied": {
        **LLAMA, "num_key_value_heads": 4, "head_dim": 12, "attention_bias": True, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3, "rope_theta": 1e6,
    },
}  # fmt: skip


def _make_reference(family, seed=0, **settings):
    """A model with weights large enough that every part matters, biases and norms included."""
    settings = {"bos_token_id": 0, "eos_token_id": 0, **settings}
    if family.startswith("gpt2"):
        settings |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = AutoConfig.for_model(family.split("-")[0], **settings)
    # Its fused attention does not bound scores.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return draw_weights(model, seed)


@pytest.fixture(scope="session")
def make_reference():
    return _make_reference


@pytest.fixture(scope="session")
def shown_families():
    return {name.split("-")[0] for name in TINY}


@pytest.fixture(scope="session", params=sorted(TINY))
def tiny(request):
    return _make_reference(request.param, **TINY[request.param])
