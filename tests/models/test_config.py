import pytest

from nbllm.core.errors import UserError
from nbllm.models import PRESETS, ModelConfig, make_config
from nbllm.models.families import FAMILIES
from nbllm.models.network import build_without_weights, count_parameters

PUBLISHED = {  # as their authors or their model cards state them
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2-0.5b": 494_032_768,
    "bloom": 559_214_592,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "opt": 125_239_296,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "glm": 9_399_951_360,
    "glm-4-9b": 9_399_951_360,
    "opt-1.3b": 1_315_758_080,
    "gpt_neox": 70_426_624,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "gptj": 6_050_882_784,
    "gpt-j-6b": 6_050_882_784,
    "phi": 1_418_270_720,
    "phi-1.5": 1_418_270_720,
    "phi-2": 2_779_683_840,
    "mistral": 7_241_732_096,
    "mistral-7b": 7_241_732_096,
    "gemma2": 2_614_341_888,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma3_text": 999_885_952,
    "gemma3": 999_885_952,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "mixtral": 46_702_792_704,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen3": 596_049_920,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "rwkv": 169_342_464,
    "rwkv-4-169m": 169_342_464,
    # By the formula of Peng et al. 2023, appendix on the number of parameters: 2 V D + 13 D^2 L + D (11 L + 4).
    "rwkv-4-430m": 430_397_440,
    "rwkv-4-1b5": 1_515_106_304,
    "rwkv-4-3b": 2_984_627_200,
    "rwkv-4-7b": 7_392_649_216,
    "rwkv-4-14b": 14_148_597_760,
    "bart": 139_420_416,
    "bart-base": 139_420_416,
    "bart-large": 406_291_456,
    "t5": 60_506_624,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
}
# Without the head and with the pooler, as transformers' models of the published configurations count them.
ENCODERS = {
    "bert": 109_482_240,
    "bert-large": 335_141_888,
    "minilm-l6": 22_713_216,
    "roberta": 124_645_632,
    "roberta-large": 355_359_744,
    "distilbert": 66_362_880,
    "albert": 11_683_584,
    "albert-large": 17_683_968,
}

# As the papers print them, and the last digit that they print: of models that transformers has no class for.
PAPERS = {
    "palm-8b": (8.63e9, 0.01e9),  # Chowdhery et al. 2022, table 1
    "palm-62b": (62.50e9, 0.01e9),
    "palm-540b": (540.35e9, 0.01e9),
    "gopher-44m": (44e6, 1e6),  # Rae et al. 2021, table 1
    "gopher-117m": (117e6, 1e6),
    "gopher-417m": (417e6, 1e6),
    "gopher-1.4b": (1.4e9, 0.1e9),  # 1.375e9: as printed, but 2% less
    "gopher-7.1b": (7.1e9, 0.1e9),
    "gopher-280b": (280e9, 1e9),
    "glm-base": (110e6, 10e6),  # Du et al. 2022, section 3.1
    "glm-large": (335e6, 1e6),  # the list of published models; 340e6 in the paper, after BERT-large
    "glm-10b": (10e9, 1e9),  # 9.88e9: as printed, but 1.2% less
    "glm-130b": (130e9, 10e9),  # Zeng et al. 2022
}


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_presets_of_papers_have_the_printed_size(name):
    config = make_config(name)
    published, digit = PAPERS[name]
    found = count_parameters(config)
    rounded = name in ("gopher-1.4b", "glm-10b")
    assert abs(found - published) <= (digit / 2 if rounded else 0.01 * published)
    if config.num_layers <= 32:
        assert build_without_weights(config).num_parameters == found


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_presets_have_the_published_size(name):
    assert build_without_weights(make_config(name)).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_presets_of_encoders_have_the_published_size(name):
    config = make_config(name, mask_head=False, pooler=name != "distilbert")
    assert build_without_weights(config).num_parameters == ENCODERS[name]


def test_every_preset_can_be_saved_and_is_what_its_family_reads():
    from nbllm.models.families.config_reader import ConfigReader

    assert PUBLISHED.keys() | ENCODERS.keys() | PAPERS.keys() | {"llama", "qwen2"} == PRESETS.keys()
    for name in PRESETS:
        config = make_config(name)
        family = FAMILIES[config.family]
        settings = ConfigReader(family.write(config), "config.json")
        optional = {name: getattr(config, name) for name in family.optional}  # stated by the weights
        assert family.read(settings).replace(**optional) == config
        settings.finish()


# What the configuration files of published models state, without token ids, dropout and versions.
CONFIGURATIONS = {
    "t5-small": {
        "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0,
        "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "n_positions": 512,
        "num_heads": 8, "num_layers": 6, "output_past": True, "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"prefix": "summarize: "}}, "vocab_size": 32128,
    },
    "flan-t5-base": {
        "model_type": "t5", "d_ff": 2048, "d_kv": 64, "d_model": 768, "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06, "n_positions": 512, "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12,
        "output_past": True, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False, "vocab_size": 32128,
    },
    "bart-base": {
        "model_type": "bart", "activation_function": "gelu", "add_bias_logits": False, "add_final_layer_norm": False,
        "classif_dropout": 0.1, "classifier_dropout": 0.0, "d_model": 768, "decoder_attention_heads": 12,
        "decoder_ffn_dim": 3072, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 2,
        "early_stopping": True, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072, "encoder_layerdrop": 0.0,
        "encoder_layers": 6, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "gradient_checkpointing": False,
        "init_std": 0.02, "is_encoder_decoder": True, "max_position_embeddings": 1024, "no_repeat_ngram_size": 3,
        "normalize_before": False, "normalize_embedding": True, "num_beams": 4, "num_hidden_layers": 6,
        "scale_embedding": False, "vocab_size": 50265,
    },
    "opt-125m": {
        "model_type": "opt", "activation_dropout": 0.0, "activation_function": "relu", "do_layer_norm_before": True,
        "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "num_attention_heads": 12, "num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272,
        "word_embed_proj_dim": 768,
    },
    "opt-350m": {
        "model_type": "opt", "_remove_final_layer_norm": False, "activation_dropout": 0.0,
        "activation_function": "relu", "attention_dropout": 0.0, "do_layer_norm_before": False, "dropout": 0.1,
        "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "num_attention_heads": 16, "num_hidden_layers": 24, "prefix": "</s>", "vocab_size": 50272,
        "word_embed_proj_dim": 512,
    },
    "bloom-560m": {
        "model_type": "bloom", "apply_residual_connection_post_layernorm": False, "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
        "masked_softmax_fusion": True, "n_embed": 1024, "n_inner": None, "n_layer": 24, "num_attention_heads": 16,
        "offset_alibi": 100, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": True,
        "skip_bias_add_qkv": False, "slow_but_exact": False, "unk_token_id": 0, "vocab_size": 250880,
    },
    "pythia-70m": {
        "model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 512, "initializer_range": 0.02,
        "intermediate_size": 2048, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "tie_word_embeddings": False, "use_parallel_residual": True, "vocab_size": 50304,
    },
    "gpt-j-6b": {
        "model_type": "gptj", "activation_function": "gelu_new", "gradient_checkpointing": False,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_embd": 4096, "n_head": 16, "n_inner": None,
        "n_layer": 28, "n_positions": 2048, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
        "summary_type": "cls_index", "tie_word_embeddings": False, "vocab_size": 50400,
    },
    "phi-2": {
        "model_type": "phi", "hidden_act": "gelu_new", "hidden_size": 2560, "initializer_range": 0.02,
        "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
        "qk_layernorm": False, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    },
    "gemma-2-27b": {
        "model_type": "gemma2", "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 128,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 4608,
        "initializer_range": 0.02, "intermediate_size": 36864, "max_position_embeddings": 8192,
        "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144,
        "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
    },
    "gemma-3-1b": {
        "model_type": "gemma3_text", "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "final_logit_softcapping": None,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02,
        "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_local_experts": 8, "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.02, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONFIGURATIONS))
def test_published_configurations_are_read_as_the_presets(name):
    from nbllm.models.families.config_reader import ConfigReader

    settings = ConfigReader(CONFIGURATIONS[name], "config.json")
    assert FAMILIES[CONFIGURATIONS[name]["model_type"]].read(settings) == make_config(name)
    settings.finish()


def test_sizes_follow_from_what_is_changed():
    config = make_config("tinyllama-1.1b", hidden_size=384, num_heads=6)
    assert (config.num_kv_heads, config.head_dim, config.intermediate_size) == (6, 64, 1024)
    assert make_config("gpt2", hidden_size=384, num_heads=6).intermediate_size == 4 * 384
    assert make_config("tinyllama-1.1b", num_layers=2).intermediate_size == 5632


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 3}, "no setting 'hiden_size'"),
        ({"hidden_size": 100, "num_heads": 12}, "hidden_size (100) is not a multiple of num_heads (12)"),
        ({"num_layers": 0}, "num_layers must be greater than 0"),
        ({"norm": "batch_norm"}, "norm is 'batch_norm'"),
        ({"activation": "gelu_tan"}, "Did you mean 'gelu_tanh'"),
        ({"positions": "rotary"}, "A gpt2 model has positions='learned'"),
        ({"num_kv_heads": 4}, "as many key/value heads as query heads"),
        ({"num_kv_heads": 5}, "num_heads (12) is not a multiple of num_kv_heads (5)"),
        ({"num_kv_heads": -1}, "num_kv_heads must not be negative"),
        ({"num_heads": 2.5}, "num_heads must be a whole number"),
        ({"hidden_size": "384"}, "hidden_size must be a whole number"),
        ({"norm_eps": "small"}, "norm_eps must be a number"),
        ({"tie_embeddings": 1}, "tie_embeddings must be true or false"),
        ({"norm_eps": float("nan")}, "norm_eps must be greater than 0"),
        ({"sliding_window": 8}, "A gpt2 model has sliding_window=0"),
        ({"embedding_norm": True}, "A gpt2 model has embedding_norm=False"),
        ({"rotary_fraction": 0.5}, "rotary_fraction is for rotary positions"),
        ({"rope_scaling": {"kind": "linear", "factor": 2.0}}, "rope_scaling is for rotary positions"),
        ({"full_attention_interval": 2}, "full_attention_interval is for layers with a sliding_window"),
        ({"attention_softcap": -1.0}, "attention_softcap must not be negative"),
        ({"num_experts": 4}, "experts_per_token (0) must be from 1 to num_experts (4)"),
        (
            {"num_experts": 4, "experts_per_token": 5},
            "experts_per_token (5) must be from 1 to num_experts (4)",
        ),
        ({"router_loss_weight": 0.1}, "router_loss_weight is for a mixture of experts"),
        ({"shared_norm": True}, "shared_norm is for a parallel block"),
        ({"head_bias": True}, "head_bias is for a head that is not tied"),
        ({"parallel_block": True, "norm_placement": "post"}, 'A parallel block has norm_placement="pre"'),
        ({"family": "llama"}, "family is part of the preset"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError) as caught:
        make_config("gpt2", **changes)
    assert message in str(caught.value)


def test_rotary_heads_are_even_and_presets_are_known():
    with pytest.raises(UserError, match="head_dim is 5"):
        make_config("llama", hidden_size=20, num_heads=4)
    with pytest.raises(UserError, match=r"head_dim is 12 and rotary_fraction 0\.25"):
        make_config("gpt_neox", hidden_size=48, num_heads=4)
    with pytest.raises(UserError, match="rotary_fraction must be at most 1"):
        make_config("gpt_neox", rotary_fraction=1.5)
    with pytest.raises(UserError, match="Did you mean 'gpt2-xl'"):
        make_config("gpt-xl")
    with pytest.raises(UserError, match="multiple of num_heads"):
        make_config("llama", hidden_size=50, num_heads=4, head_dim=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 1.0, "rope_scaling": {"kind": "yarn", "factor": 2.0, "original_max_positions": 64}},
         "rope_theta must be greater than 1"),
        ({"rope_scaling": {"kind": "dynamic", "factor": 2.0, "original_max_positions": 64}},
         "max_positions is 2048; with dynamic scaling it is factor * original_max_positions: 128"),
        ({"rope_scaling": {"kind": "linear", "factr": 2.0}}, "RopeScaling has no setting 'factr'"),
    ],
)  # fmt: skip
def test_scalings_that_cannot_be_computed_are_named(changes, message):
    with pytest.raises(UserError) as caught:
        make_config("llama", **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["llama", "llama-3.1-8b"])
def test_a_config_survives_its_dictionary(name):
    config = make_config(name)
    assert ModelConfig.from_dict(config.to_dict()) == config
