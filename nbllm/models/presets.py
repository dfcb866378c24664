"""Shapes with a name: each family's usual one, and those of published models."""

from __future__ import annotations

import math
from typing import Any

from nbllm.core.errors import UserError, closest
from nbllm.models.config import ModelConfig
from nbllm.models.families import FAMILIES
from nbllm.models.families.bart import BART
from nbllm.models.families.bert import POST_NORM_ENCODER
from nbllm.models.families.gemma2 import GEMMA_DECODER
from nbllm.models.families.own import OWN
from nbllm.models.families.rwkv import RWKV_NETWORK
from nbllm.models.families.t5 import ENCODER_DECODER

_GPT2: dict[str, Any] = {"family": "gpt2", "vocab_size": 50257}
_LLAMA: dict[str, Any] = {
    "family": "llama",
    "vocab_size": 32000,
    "max_positions": 2048,
    "positions": "rotary",
    "norm": "rms_norm",
    "activation": "silu",
    "gated": True,
    "attention_bias": False,
    "feed_forward_bias": False,
}
_QWEN2: dict[str, Any] = {
    **_LLAMA,
    "family": "qwen2",
    "vocab_size": 151936,
    "max_positions": 32768,
    "norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": True,
    "attention_output_bias": False,
}
_LLAMA_3: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 128256,
    "max_positions": 8192,
    "rope_theta": 500000.0,
    "num_kv_heads": 8,
    "tie_embeddings": False,
}
_LLAMA_31: dict[str, Any] = {  # from 3.1 on
    **_LLAMA_3,
    "max_positions": 131072,
    "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_positions": 8192},
}
_LLAMA_32: dict[str, Any] = {
    **_LLAMA_31,
    "rope_scaling": {"kind": "llama3", "factor": 32.0, "original_max_positions": 8192},
    "tie_embeddings": True,
    "intermediate_size": 8192,
}
_8B: dict[str, Any] = {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "intermediate_size": 14336}
_70B: dict[str, Any] = {"hidden_size": 8192, "num_layers": 80, "num_heads": 64, "intermediate_size": 28672}
_SMOLLM2: dict[str, Any] = {
    **_LLAMA,
    "vocab_size": 49152,
    "max_positions": 8192,
    "rope_theta": 100000.0,
}

_BLOOM: dict[str, Any] = {
    "family": "bloom",
    "vocab_size": 250880,
    "max_positions": 2048,
    "positions": "alibi",
    "embedding_norm": True,
}
_OPT: dict[str, Any] = {
    "family": "opt",
    "vocab_size": 50272,
    "max_positions": 2048,
    "position_offset": 2,
    "activation": "relu",
}
_PYTHIA: dict[str, Any] = {
    "family": "gpt_neox",
    "vocab_size": 50304,
    "max_positions": 2048,
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "parallel_block": True,
    "activation": "gelu",
    "tie_embeddings": False,
}
_GPTJ: dict[str, Any] = {
    "family": "gptj",
    "vocab_size": 50400,
    "max_positions": 2048,
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rotary_interleaved": True,
    "parallel_block": True,
    "shared_norm": True,
    "attention_bias": False,
    "tie_embeddings": False,
    "head_bias": True,
}
_PHI: dict[str, Any] = {
    **_GPTJ,
    "family": "phi",
    "vocab_size": 51200,
    "rotary_fraction": 0.5,
    "rotary_interleaved": False,
    "attention_bias": True,
}
_MISTRAL: dict[str, Any] = {
    **_LLAMA,
    "family": "mistral",
    "max_positions": 32768,
    "sliding_window": 4096,
    "tie_embeddings": False,
}
_MIXTRAL: dict[str, Any] = {
    **_MISTRAL,
    "family": "mixtral",
    "sliding_window": 0,
    "rope_theta": 1e6,
    "num_kv_heads": 8,
    "num_experts": 8,
    "experts_per_token": 2,
    "router_loss_weight": 0.02,
}
_QWEN3: dict[str, Any] = {
    **_QWEN2,
    "family": "qwen3",
    "max_positions": 40960,
    "attention_bias": False,
    "attention_output_bias": True,
    "qk_norm": True,
}
_GLM: dict[str, Any] = {
    **_LLAMA,
    "family": "glm",
    "vocab_size": 151552,
    "max_positions": 131072,
    "norm_eps": 1.5625e-7,
    "rotary_fraction": 0.5,
    "rotary_interleaved": True,
    "attention_bias": True,
    "attention_output_bias": False,
    "tie_embeddings": False,
}
_GEMMA2: dict[str, Any] = {
    **GEMMA_DECODER,
    "family": "gemma2",
    "vocab_size": 256000,
    "max_positions": 8192,
    "norm_eps": 1e-6,
    "activation": "gelu_tanh",
    "attention_bias": False,
    "attention_softcap": 50.0,
    "logit_softcap": 30.0,
    "sliding_window": 4096,
    "full_attention_interval": 2,
}
_GEMMA3: dict[str, Any] = {
    **_GEMMA2,
    "family": "gemma3_text",
    "vocab_size": 262208,
    "max_positions": 131072,
    "qk_norm": True,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "sliding_window": 1024,
    "full_attention_interval": 6,
    "rope_theta": 1e6,
    "rope_local_theta": 10000.0,
}
_GEMMA3_LONG: dict[str, Any] = {**_GEMMA3, "rope_scaling": {"kind": "linear", "factor": 8.0}}
_BERT: dict[str, Any] = {
    **POST_NORM_ENCODER,
    "family": "bert",
    "vocab_size": 30522,
    "max_positions": 512,
    "activation": "gelu",
    "norm_eps": 1e-12,
    "token_types": 2,
    "mask_head": True,
}
_ROBERTA: dict[str, Any] = {**_BERT, "family": "roberta", "vocab_size": 50265, "norm_eps": 1e-5, "token_types": 1,
    "position_offset": 2}  # fmt: skip
_ALBERT: dict[str, Any] = {**_BERT, "family": "albert", "vocab_size": 30000, "activation": "gelu_tanh",
    "embedding_size": 128, "num_layer_groups": 1}  # fmt: skip
_BART: dict[str, Any] = {
    **BART,
    "family": "bart",
    "vocab_size": 50265,
    "activation": "gelu",
}
_T5: dict[str, Any] = {
    **ENCODER_DECODER,
    "family": "t5",
    "vocab_size": 32128,
    "max_positions": 512,
    "activation": "relu",
    "norm_eps": 1e-6,
    "scale_head": True,
}
_FLAN_T5: dict[str, Any] = {
    **_T5,
    "activation": "gelu_tanh",
    "gated": True,
    "tie_embeddings": False,
    "scale_head": False,
}

_RWKV: dict[str, Any] = {**RWKV_NETWORK, "family": "rwkv", "vocab_size": 50277, "tie_embeddings": False,
    "rescale_every": 6}  # fmt: skip
# Chowdhery et al. 2022, arXiv:2204.02311, section 2 and table 1.
_PALM: dict[str, Any] = {"family": OWN, "vocab_size": 256000, "max_positions": 2048, "num_kv_heads": 1, "head_dim": 256,
    "positions": "rotary", "norm": "layer_norm_no_bias", "norm_eps": 1e-6, "activation": "silu", "gated": True,
    "parallel_block": True, "shared_norm": True, "attention_bias": False, "feed_forward_bias": False,
    "scale_head": True}  # fmt: skip
# Rae et al. 2021, arXiv:2112.11446, section 3.1 and table 1.
_GOPHER: dict[str, Any] = {"family": OWN, "vocab_size": 32000, "max_positions": 2048, "positions": "transformer_xl",
    "norm": "rms_norm"}  # fmt: skip
# Du et al. 2022, arXiv:2103.10360, section 3.1 and the configuration files published with the models; the vocabularies
# are BERT's and GPT-2's, padded to a multiple of 128.
_FIRST_GLM: dict[str, Any] = {"family": OWN, "network": "prefix_decoder", "positions": "learned_2d"}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT2, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "gpt2-medium": {**_GPT2, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "gpt2-large": {**_GPT2, "hidden_size": 1280, "num_layers": 36, "num_heads": 20},
    "gpt2-xl": {**_GPT2, "hidden_size": 1600, "num_layers": 48, "num_heads": 25},
    # "llama" and "qwen2" are no published shapes: GPT-2's width and depth in their parts, for one machine.
    "llama": {**_LLAMA, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 4},
    "qwen2": {**_QWEN2, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 4},
    "qwen2-0.5b": {
        **_QWEN2,
        "hidden_size": 896,
        "num_layers": 24,
        "num_heads": 14,
        "num_kv_heads": 2,
        "intermediate_size": 4864,
    },
    "smollm2-135m": {**_SMOLLM2, "hidden_size": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3},
    "smollm2-360m": {**_SMOLLM2, "hidden_size": 960, "num_layers": 32, "num_heads": 15, "num_kv_heads": 5},
    "tinyllama-1.1b": {
        **_LLAMA,
        "hidden_size": 2048,
        "num_layers": 22,
        "num_heads": 32,
        "num_kv_heads": 4,
        "intermediate_size": 5632,
        "tie_embeddings": False,
    },
    "llama-7b": {
        **_LLAMA,
        "hidden_size": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "intermediate_size": 11008,
        "norm_eps": 1e-6,
        "tie_embeddings": False,
    },
    "llama-3-8b": {**_LLAMA_3, **_8B},
    "llama-3-70b": {**_LLAMA_3, **_70B},
    "llama-3.1-8b": {**_LLAMA_31, **_8B},
    "llama-3.1-70b": {**_LLAMA_31, **_70B},
    "llama-3.2-1b": {**_LLAMA_32, "hidden_size": 2048, "num_layers": 16, "num_heads": 32},
    "llama-3.2-3b": {**_LLAMA_32, "hidden_size": 3072, "num_layers": 28, "num_heads": 24},
    "bloom": {**_BLOOM, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "bloom-1b1": {**_BLOOM, "hidden_size": 1536, "num_layers": 24, "num_heads": 16},
    "opt": {**_OPT, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "opt-350m": {
        **_OPT,
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 16,
        "norm_placement": "post",
        "embedding_size": 512,
    },
    "opt-1.3b": {**_OPT, "hidden_size": 2048, "num_layers": 24, "num_heads": 32},
    "gpt_neox": {**_PYTHIA, "hidden_size": 512, "num_layers": 6, "num_heads": 8},
    "pythia-160m": {**_PYTHIA, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "pythia-410m": {**_PYTHIA, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "pythia-1b": {**_PYTHIA, "hidden_size": 2048, "num_layers": 16, "num_heads": 8},
    "glm": {
        **_GLM,
        "hidden_size": 4096,
        "num_layers": 40,
        "num_heads": 32,
        "num_kv_heads": 2,
        "intermediate_size": 13696,
    },
    "gptj": {**_GPTJ, "hidden_size": 4096, "num_layers": 28, "num_heads": 16},
    "phi": {**_PHI, "hidden_size": 2048, "num_layers": 24, "num_heads": 32},
    "phi-2": {**_PHI, "hidden_size": 2560, "num_layers": 32, "num_heads": 32, "rotary_fraction": 0.4},
    "mistral": {
        **_MISTRAL,
        "hidden_size": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "intermediate_size": 14336,
    },
    "mixtral": {
        **_MIXTRAL,
        "hidden_size": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "intermediate_size": 14336,
    },
    "mixtral-8x22b": {
        **_MIXTRAL,
        "max_positions": 65536,
        "vocab_size": 32768,
        "hidden_size": 6144,
        "num_layers": 56,
        "num_heads": 48,
        "intermediate_size": 16384,
        "router_loss_weight": 0.001,
    },
    "qwen3": {
        **_QWEN3,
        "hidden_size": 1024,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
    "qwen3-1.7b": {
        **_QWEN3,
        "hidden_size": 2048,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 8,
        "intermediate_size": 6144,
    },
    "rwkv": {**_RWKV, "hidden_size": 768, "num_layers": 12},
    "rwkv-4-430m": {**_RWKV, "hidden_size": 1024, "num_layers": 24},
    "rwkv-4-1b5": {**_RWKV, "hidden_size": 2048, "num_layers": 24},
    "rwkv-4-3b": {**_RWKV, "hidden_size": 2560, "num_layers": 32},
    "rwkv-4-7b": {**_RWKV, "hidden_size": 4096, "num_layers": 32},
    "rwkv-4-14b": {**_RWKV, "hidden_size": 5120, "num_layers": 40},
    "gemma2": {
        **_GEMMA2,
        "hidden_size": 2304,
        "num_layers": 26,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
    },
    "gemma-2-9b": {
        **_GEMMA2,
        "hidden_size": 3584,
        "num_layers": 42,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 256,
        "intermediate_size": 14336,
    },
    "gemma-2-27b": {
        **_GEMMA2,
        "hidden_size": 4608,
        "num_layers": 46,
        "num_heads": 32,
        "num_kv_heads": 16,
        "head_dim": 128,
        "intermediate_size": 36864,
        "attention_scale": 144**-0.5,
    },
    "gemma3_text": {
        **_GEMMA3,
        "vocab_size": 262144,
        "max_positions": 32768,
        "sliding_window": 512,
        "hidden_size": 1152,
        "num_layers": 26,
        "num_heads": 4,
        "num_kv_heads": 1,
        "head_dim": 256,
        "intermediate_size": 6912,
    },
    # Of the larger ones, the text model without the one that reads pictures.
    "gemma-3-4b": {
        **_GEMMA3_LONG,
        "hidden_size": 2560,
        "num_layers": 34,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 256,
        "intermediate_size": 10240,
    },
    "gemma-3-12b": {
        **_GEMMA3_LONG,
        "hidden_size": 3840,
        "num_layers": 48,
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 256,
        "intermediate_size": 15360,
    },
    "gemma-3-27b": {
        **_GEMMA3_LONG,
        "hidden_size": 5376,
        "num_layers": 62,
        "num_heads": 32,
        "num_kv_heads": 16,
        "head_dim": 128,
        "intermediate_size": 21504,
        "attention_scale": 168**-0.5,
    },
    "palm-8b": {**_PALM, "hidden_size": 4096, "num_layers": 32, "num_heads": 16, "intermediate_size": 16384},
    "palm-62b": {**_PALM, "hidden_size": 8192, "num_layers": 64, "num_heads": 32, "intermediate_size": 32768},
    "palm-540b": {
        **_PALM,
        "hidden_size": 18432,
        "num_layers": 118,
        "num_heads": 48,
        "intermediate_size": 73728,
    },
    "gopher-44m": {**_GOPHER, "hidden_size": 512, "num_layers": 8, "num_heads": 16},
    "gopher-117m": {**_GOPHER, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "gopher-417m": {**_GOPHER, "hidden_size": 1536, "num_layers": 12, "num_heads": 12},
    "gopher-1.4b": {**_GOPHER, "hidden_size": 2048, "num_layers": 24, "num_heads": 16},
    "gopher-7.1b": {**_GOPHER, "hidden_size": 4096, "num_layers": 32, "num_heads": 32},
    "gopher-280b": {**_GOPHER, "hidden_size": 16384, "num_layers": 80, "num_heads": 128},
    "glm-base": {
        **_FIRST_GLM,
        "vocab_size": 30592,
        "max_positions": 512,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
    },
    "glm-large": {
        **_FIRST_GLM,
        "vocab_size": 30592,
        "max_positions": 512,
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 16,
    },
    "glm-10b": {**_FIRST_GLM, "vocab_size": 50304, "hidden_size": 4096, "num_layers": 48, "num_heads": 64},
    # Zeng et al. 2022, arXiv:2210.02414, section 2 and appendix C; its head is a matrix of its own.
    "glm-130b": {
        **_FIRST_GLM,
        "vocab_size": 150528,
        "max_positions": 2048,
        "positions": "rotary",
        "hidden_size": 12288,
        "num_layers": 70,
        "num_heads": 96,
        "intermediate_size": 32768,
        "activation": "gelu",
        "gated": True,
        "norm_placement": "post",
        "residual_scale": math.sqrt(140),
        "tie_embeddings": False,
    },
    "bert": {**_BERT, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "bert-large": {**_BERT, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "minilm-l6": {**_BERT, "hidden_size": 384, "num_layers": 6, "num_heads": 12},
    "roberta": {**_ROBERTA, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "roberta-large": {**_ROBERTA, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "distilbert": {
        **_BERT,
        "family": "distilbert",
        "hidden_size": 768,
        "num_layers": 6,
        "num_heads": 12,
        "token_types": 0,
    },
    "albert": {**_ALBERT, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "albert-large": {**_ALBERT, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "bart": {**_BART, "hidden_size": 768, "num_layers": 6, "num_heads": 12},
    "bart-large": {**_BART, "hidden_size": 1024, "num_layers": 12, "num_heads": 16},
    "t5": {**_T5, "hidden_size": 512, "num_layers": 6, "num_heads": 8},
    "t5-base": {**_T5, "hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "t5-large": {**_T5, "hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "t5-3b": {
        **_T5,
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 32,
        "head_dim": 128,
        "intermediate_size": 16384,
    },
    "t5-11b": {
        **_T5,
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 128,
        "head_dim": 128,
        "intermediate_size": 65536,
    },
    "flan-t5-xl": {
        **_FLAN_T5,
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 32,
        "intermediate_size": 5120,
    },
    "flan-t5-xxl": {
        **_FLAN_T5,
        "hidden_size": 4096,
        "num_layers": 24,
        "num_heads": 64,
        "intermediate_size": 10240,
    },
    "flan-t5-small": {
        **_FLAN_T5,
        "hidden_size": 512,
        "num_layers": 8,
        "num_heads": 6,
        "head_dim": 64,
        "intermediate_size": 1024,
    },
    "flan-t5-base": {
        **_FLAN_T5,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "intermediate_size": 2048,
    },
    "flan-t5-large": {
        **_FLAN_T5,
        "hidden_size": 1024,
        "num_layers": 24,
        "num_heads": 16,
        "intermediate_size": 2816,
    },
}

# The published names of the shapes that stand under the name of their family.
PRESETS |= {
    "bloom-560m": PRESETS["bloom"], "opt-125m": PRESETS["opt"], "pythia-70m": PRESETS["gpt_neox"],
    "gpt-j-6b": PRESETS["gptj"], "phi-1.5": PRESETS["phi"], "mistral-7b": PRESETS["mistral"],
    "qwen3-0.6b": PRESETS["qwen3"], "rwkv-4-169m": PRESETS["rwkv"],
    "bart-base": PRESETS["bart"], "t5-small": PRESETS["t5"],
    "mixtral-8x7b": PRESETS["mixtral"], "glm-4-9b": PRESETS["glm"],
    "gemma-2-2b": PRESETS["gemma2"], "gemma-3-1b": PRESETS["gemma3_text"], "gemma3": PRESETS["gemma3_text"],
}  # fmt: skip

_DERIVED = ("num_kv_heads", "head_dim", "intermediate_size")


def make_config(name: str, **changes: Any) -> ModelConfig:
    """Return the preset `name` (a family's name is its usual shape) with `changes`.

    A change of hidden_size or num_heads lets the sizes that follow from them (num_kv_heads unless it is 1, head_dim,
    intermediate_size) be derived anew unless they are given too; one of num_layers, the residual_scale of DeepNorm.

    Raises:
        UserError: No such preset or setting, a value out of range, or one that the family cannot have.
    """
    if name not in PRESETS:
        close = closest(name.lower(), sorted(PRESETS))
        raise UserError(
            f"There is no model family or preset named {name!r}.",
            hint="nb.presets() lists them."
            if close is None
            else f"Did you mean {close!r}? nb.presets() lists all.",
        )
    values = dict(PRESETS[name])
    if "family" in changes:
        raise UserError(
            "family is part of the preset.", where=f"preset {name!r}", hint="Choose another preset."
        )
    if "hidden_size" in changes or "num_heads" in changes:
        for key in _DERIVED:
            if values.get(key) != 1:  # a single key/value head serves any number of query heads
                values.pop(key, None)
    layers = changes.get("num_layers")
    if "residual_scale" in values and isinstance(layers, int) and layers > 0:
        values["residual_scale"] = math.sqrt(2 * layers)
    if changes.get("network") == "prefix_decoder":  # of the parts of any decoder
        values["family"] = OWN
    config = ModelConfig.from_dict({**values, **changes})
    FAMILIES[config.family].check(config)
    return config
