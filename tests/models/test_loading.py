"""Everything that can be wrong with a model directory is named: the tensor and the file."""

import errno
import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbllm.core.errors import UserError, WeightsError
from nbllm.models import Decoder, load_model, save_model
from nbllm.models.config import ModelConfig
from nbllm.models.families import FAMILIES
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.tensor_file import TensorFile

HEAD_OF = {
    "gpt2": "transformer.wte.weight",
    "llama": "model.embed_tokens.weight",
    "qwen2": "model.embed_tokens.weight",
}
PROJECTION = {
    "gpt2": "transformer.h.1.mlp.c_fc.weight",
    "llama": "model.layers.1.mlp.up_proj.weight",
    "qwen2": "model.layers.1.mlp.up_proj.weight",
}


DECODERS = [name for name in FAMILIES if FAMILIES[name].fixed.get("network") == "decoder"]


@pytest.fixture
def folder(small, tmp_path):
    save_model(small, tmp_path)
    return tmp_path


@pytest.fixture
def sharded(small, tmp_path):
    save_model(small, tmp_path, max_shard_bytes=20_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, *words):
    with pytest.raises(WeightsError) as caught:
        load_model(folder)
    for word in words:
        assert word in str(caught.value), caught.value
    return str(caught.value)


def test_what_was_saved_is_opened(small, folder, tokens):
    opened = load_model(folder)
    assert opened.config == small.config
    assert torch.equal(opened(tokens), small(tokens))
    assert opened.embedding.weight.requires_grad


def test_shards_hold_the_same(small, sharded, tokens):
    assert torch.equal(load_model(sharded)(tokens), small(tokens))


def test_a_missing_tensor(folder, family):
    change(folder, lambda tensors: tensors.pop(PROJECTION[family]))
    refused(folder, "1 tensor is missing", PROJECTION[family], "model.safetensors")


def test_a_surplus_tensor(folder):
    change(folder, lambda tensors: tensors.update(extra=torch.zeros(2)))
    refused(folder, "1 tensor is surplus", "extra", "model.safetensors")


def test_many_missing_tensors_are_counted(folder):
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors)[:9]])
    refused(folder, "9 tensors are missing", "and 4 more")


def test_a_misshapen_tensor(folder, family):
    def transpose(tensors):
        tensors[PROJECTION[family]] = tensors[PROJECTION[family]].t().contiguous()

    change(folder, transpose)
    refused(folder, PROJECTION[family], "has the shape", "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite(folder, family, value):
    change(folder, lambda tensors: tensors[PROJECTION[family]][0, :2].fill_(value))
    refused(folder, PROJECTION[family], "2 values that are not finite", "model.safetensors")


def test_a_tensor_that_is_not_floating(folder, family):
    def quantize(tensors):
        tensors[PROJECTION[family]] = tensors[PROJECTION[family]].to(torch.int8)

    change(folder, quantize)
    refused(folder, PROJECTION[family], "stored as I8")


@pytest.mark.parametrize("keep", [0, 5, 400, -3])
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "no whole safetensors file", "model.safetensors")


def test_a_file_that_shrinks_while_it_is_read(folder, family, monkeypatch):
    """A map of it would end the process."""
    read = TensorFile.read

    def shrink_first(file, name, dtype, out):
        os.truncate(folder / "model.safetensors", 3000)
        return read(file, name, dtype, out)

    monkeypatch.setattr(TensorFile, "read", shrink_first)
    refused(folder, "The file ended within", "was changed meanwhile", "model.safetensors")


def test_a_damaged_header(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)
    refused(folder, "no whole safetensors file", "model.safetensors")


def test_mixed_precision_becomes_float32(folder, family):
    def halve(tensors):
        tensors[PROJECTION[family]] = tensors[PROJECTION[family]].half()

    change(folder, halve)
    assert load_model(folder).embedding.weight.dtype == torch.float32


def test_a_shard_that_is_missing(sharded):
    (sharded / "model-00002-of-00099.safetensors").unlink(missing_ok=True)
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    gone.unlink()
    refused(sharded, f"The shard {gone.name} is missing; it holds ")


def test_a_damaged_shard(sharded):
    path = sorted(sharded.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])
    refused(sharded, "no whole safetensors file", path.name)


def test_a_tensor_missing_from_its_shard_or_from_the_index(sharded):
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    files = list(values["weight_map"].values())
    name = next(name for name, file in values["weight_map"].items() if files.count(file) > 1)
    file = values["weight_map"].pop(name)
    index.write_text(json.dumps(values))
    refused(sharded, f"{name} is surplus: the index does not name it", file)
    values["weight_map"] |= {name: file, "ghost": file}
    index.write_text(json.dumps(values))
    refused(sharded, "ghost is missing from the shard", file)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors"])
def test_an_index_that_reaches_outside(sharded, file, family):
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][PROJECTION[family]] = file
    index.write_text(json.dumps(values))
    refused(sharded, PROJECTION[family], "no plain file name")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"a":' * 50_000, "9" * 5000]
)
def test_an_unreadable_index(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    refused(sharded, "The index of the shards", "model.safetensors.index.json")


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "neither model.safetensors nor model.safetensors.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(folder, "pytorch_model.bin is in the older pickle format")


def test_no_directory_and_no_config(folder):
    refused(folder / "nowhere", "no such model directory", "nowhere")
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"model_type": "gpt2",', "not valid JSON"),
        ("[1, 2]", "names no model_type"),
        ('{"vocab_size": 3}', "names no model_type"),
        ('{"model_type": "mamba"}', "'mamba' is not implemented"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_an_unreadable_config(folder, text, message):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(folder, message, "config.json")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True"]),
        ("gpt2", {"scale_attn_weights": False}, ["scale_attn_weights is False"]),
        ("gpt2", {"add_cross_attention": True}, ["add_cross_attention is True"]),
        ("gpt2", {"alibi": True}, ["alibi is True", "implements only False"]),
        ("gpt2", {"activation_function": "mish"}, ["activation_function is 'mish'", "gelu_new"]),
        ("gpt2", {"n_head": 5}, ["is not a multiple of num_heads (5)"]),
        ("gpt2", {"n_layer": "two"}, ["n_layer is 'two'; it must be a whole number"]),
        ("gpt2", {"layer_norm_epsilon": -1}, ["layer_norm_epsilon is -1"]),
        ("gpt2", {"n_ctx": 77}, ["n_ctx is 77"]),
        ("llama", {"rope_scaling": {"type": "longrope"}}, ["rope_scaling", "type is 'longrope'"]),
        (
            "llama",
            {"rope_scaling": None, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            ["rope_parameters", "low_freq_factor is not stated"],
        ),
        ("llama", {"rope_parameters": {"rope_type": "default", "mscale": 2.0}}, ["'mscale' (2.0)"]),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ("llama", {"sliding_window": 4096}, ["'sliding_window' (4096)"]),
        ("llama", {"quantization_config": {"bits": 4}}, ["quantization_config is {'bits': 4}"]),
        ("qwen2", {"use_sliding_window": True}, ["use_sliding_window is True"]),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, ["layer_types is ['sliding_attention'"]),
        ("qwen2", {"use_mrope": True}, ["use_mrope is True"]),
        ("llama", {"layer_types": ["full_attention"]}, ["layer_types is", "a list of 2 texts"]),
        ("llama", {"embedding_multiplier": 12.0}, ["embedding_multiplier is 12.0"]),
        ("llama", {"num_local_experts": 8}, ["num_local_experts is 8"]),
        ("llama", {"attention_bias": "yes"}, ["attention_bias is 'yes'; it must be true or false"]),
        ("llama", {"num_key_value_heads": 3}, ["num_heads (4) is not a multiple of num_kv_heads (3)"]),
        ("llama", {"rope_theta": float("inf")}, ["rope_theta is inf"]),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, ["post_layernorm is True"]),
        ("bloom", {"n_inner": 77}, ["n_inner is 77"]),
        ("opt", {"do_layer_norm_before": False}, ["final_layer_norm", "surplus"]),
        ("opt", {"word_embed_proj_dim": 16}, ["project_in.weight", "missing"]),
        ("opt", {"_remove_final_layer_norm": True}, ["_remove_final_layer_norm is True"]),
        ("opt", {"layer_norm_elementwise_affine": False}, ["layer_norm_elementwise_affine is False"]),
        ("gptj", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["'rope_scaling'"]),
        ("gptj", {"rotary_dim": None}, ["rotary_dim is None; it must be stated"]),
        ("gptj", {"rotary_dim": 10}, ["rotary_dim is 10; it must be at most 8"]),
        ("gptj", {"rotary": False}, ["rotary is False"]),
        ("gptj", {"tie_word_embeddings": True}, ["tie_word_embeddings is True"]),
        ("phi", {"qk_layernorm": True}, ["qk_layernorm is True"]),
        ("phi", {"tie_word_embeddings": True}, ["tie_word_embeddings is True"]),
        ("phi", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor is 1.5"]),
        ("mistral", {"sliding_window": 0}, ["sliding_window is 0"]),
        ("mistral", {"layer_types": ["full_attention"] * 2}, ["layer_types is ['full_attention'"]),
        ("qwen3", {"use_sliding_window": True}, ["use_sliding_window is True"]),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, ["layer_types is ['sliding_attention'"]),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 2}}, ["partial_rotary_factor is 2"]),
    ],
    indirect=["family"],
)
def test_a_setting_that_is_not_implemented_is_never_dropped(folder, changes, words):
    configure(folder, **changes)
    refused(folder, "config.json", *words)


def test_settings_without_effect_and_null_are_taken(folder):
    configure(
        folder, rope_scaling=None, sliding_window=None, use_cache=False, attn_pdrop=0.3, temperature=0.7
    )
    load_model(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2"], indirect=True)
def test_settings_that_change_nothing_with_these_values_are_taken(small, folder, tokens):
    expected = small(tokens)
    configure(
        folder, use_mrope=False, max_sequence_length=2048, auto_map={"AutoModelForCausalLM": "modeling.X"},
        layer_types=["full_attention"] * 2, partial_rotary_factor=1.0, alibi=False, num_experts=0,
        unsloth_version="2025.1", is_causal=True, embedding_multiplier=1,
    )  # fmt: skip
    assert torch.equal(load_model(folder)(tokens), expected)


DEEP = "deep"
WRONG = [
    [], {}, [[]], {"a": 1}, "", "x", -1, 0, 1.5, 10**400, -(10**400), 1e308, float("nan"), float("inf"), True, False,
    "9" * 500, 2**31, 2**63, ["full_attention"] * 5, DEEP,
]  # fmt: skip


@pytest.mark.parametrize("family", DECODERS, indirect=True)
def test_no_value_of_any_setting_ends_in_a_traceback(folder, family, tmp_path):
    """Each setting that is read in turn has values of other types: opened as it was, or refused by its name."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    reader = ConfigReader(values, path)
    expected = FAMILIES[family].read(reader)
    reader.finish()
    nested = [("rope_parameters", key) for key in values.get("rope_parameters", {})]
    places = [(key,) for key in sorted(reader._read | values.keys())] + nested
    refusals = 0
    for place in places:
        for wrong in WRONG:
            changed = json.loads(json.dumps(values))
            at = changed
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = "THE PLACE"
            text = json.dumps(changed).replace(
                '"THE PLACE"', "[" * 400 + "]" * 400 if wrong is DEEP else json.dumps(wrong)
            )
            path.write_text(text)
            try:
                found = load_model(folder).config
            except WeightsError as error:
                refusals += 1
                assert len(str(error)) < 3000
                by_tensor = any(word in error.what for word in ("has the shape", "layers", "tensor", "ties"))
                assert by_tensor or any(
                    name in f"{error.what} {error.where}" for name in (place[-1], *CONTRADICTED)
                ), error
            else:
                assert found.vocab_size == expected.vocab_size, (place, wrong)
    assert refusals > 150


# Settings that an error names when another contradicts them.
CONTRADICTED = (
    "num_heads",
    "head_dim",
    "intermediate_size",
    "word_embed_proj_dim",
    "rotary_dim",
    "experts_per_token",
)


@pytest.mark.parametrize("family", ["llama"], indirect=True)
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_no_value_of_a_scaling_ends_in_a_traceback(folder, kind):
    values = {
        "rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "truncate": True,
    }  # fmt: skip
    every = list(values)
    names = {"linear": every[:2], "dynamic": every[:3], "llama3": every[:5], "yarn": every[:3] + every[5:]}[
        kind
    ]
    scaling = {name: values[name] for name in names}
    configure(folder, rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling)
    assert load_model(folder).config.rope_scaling.kind == kind
    for name in names:
        for wrong in [*WRONG[:-1], 1e-308]:
            configure(folder, rope_scaling={**scaling, name: wrong})
            try:
                load_model(folder)(torch.tensor([[1, 2]]))
            except WeightsError as error:
                assert name in f"{error.what} {error.where}" or "max_positions" in error.what, error


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, '{"model_type": ' + "9" * 5000 + "}",
        '{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}", '{"model_type": []}',
    ],
)  # fmt: skip
def test_json_that_python_cannot_hold(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_config_that_is_no_file(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refused(folder, "config.json cannot be read")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "config.json cannot be read")


def test_layers_are_counted_before_anything_is_built(folder, family):
    """Without the count, a million layers take minutes and gigabytes."""
    key = "n_layer" if family == "gpt2" else "num_hidden_layers"
    configure(folder, **{key: 9_999})
    refused(folder, "config.json asks for 9,999 layers; the file holds", "model.safetensors")
    for count in (10**6, 2**31 - 1):
        configure(folder, **{key: count})
        refused(folder, "num_layers must be at most", "config.json")


def test_sizes_that_no_tensor_has(folder, family):
    keys = ("vocab_size", "n_embd") if family == "gpt2" else ("vocab_size", "hidden_size")
    heads = "n_head" if family == "gpt2" else "num_attention_heads"
    configure(folder, **dict.fromkeys(keys, 2**30), **{heads: 1, "num_key_value_heads": None})
    refused(folder, "shape")


def test_configurations_as_published_are_taken(make_model, tmp_path):
    """The settings of openai-community/gpt2, SmolLM2-135M-Instruct and Qwen2-0.5B on the hub, of another size."""
    gpt2 = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 32, "n_embd": 32, "n_head": 4,
        "n_layer": 2, "n_positions": 32, "resid_pdrop": 0.1, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True}}, "summary_use_proj": True,
        "vocab_size": 97,
    }  # fmt: skip
    smollm2 = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 32,
        "initializer_range": 0.04, "intermediate_size": 128, "is_llama_config": True, "mlp_bias": False,
        "max_position_embeddings": 32, "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_key_value_heads": 2, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 97,
    }  # fmt: skip
    qwen2 = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 128,
        "max_position_embeddings": 32, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
        "use_sliding_window": False, "vocab_size": 97,
    }  # fmt: skip
    for published in (gpt2, smollm2, qwen2):
        save_model(make_model(published["model_type"]), tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(published))
        config = load_model(tmp_path).config
        assert (config.vocab_size, config.num_layers, config.tie_embeddings) == (97, 2, True)
        assert config.rope_theta == published.get("rope_theta", 10000.0)


def test_the_config_of_another_model(folder, family):
    key = "n_layer" if family == "gpt2" else "num_hidden_layers"
    configure(folder, **{key: 1})
    refused(folder, "tensors are surplus")
    configure(folder, **{key: 3})
    refused(folder, "tensors are missing")


def test_a_head_that_is_stored_though_tied(make_model, tmp_path, family):
    model = make_model(family, tie_embeddings=True)
    save_model(model, tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[HEAD_OF[family]].clone()}))
    assert load_model(tmp_path).head is None
    change(tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1))
    refused(tmp_path, "lm_head.weight differs from the embedding")


def test_a_head_that_is_missing_though_untied(make_model, tmp_path, family):
    save_model(make_model(family, tie_embeddings=False), tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    refused(tmp_path, "lm_head.weight", "tie_word_embeddings")


def test_only_the_head_is_stored_of_a_tied_pair(make_model, tmp_path, family, tokens):
    model = make_model(family, tie_embeddings=True)
    save_model(model, tmp_path)
    change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(HEAD_OF[family])}))
    assert torch.equal(load_model(tmp_path)(tokens), model(tokens))


def test_a_model_that_its_family_cannot_express(tmp_path):
    config = ModelConfig(family="gpt2", vocab_size=9, hidden_size=8, num_layers=1, num_heads=2, gated=True)
    with pytest.raises(UserError, match="A gpt2 model has gated=False, not True"):
        save_model(Decoder(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stays_an_oserror(small, tmp_path):
    """A limit on the size of files stands for the full disk."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            save_model(small, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert "model.safetensors" in str(caught.value)


def test_the_weights_do_not_change_with_the_file(folder, family):
    """In a process of its own, which would end by SIGBUS where weights were still mapped."""
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom nbllm.models import load_model\n"
        "model, path = load_model(sys.argv[1]), Path(sys.argv[1]) / 'model.safetensors'\n"
        "before = {name: parameter.double().sum().item() for name, parameter in model.named_parameters()}\n"
        "size = path.stat().st_size\n"
        "for content in (bytes(size), b''):\n"
        "    with open(path, 'r+b') as file: file.write(content), file.truncate(len(content))\n"
        "    for name, parameter in model.named_parameters():\n"
        "        assert parameter.double().sum().item() == before[name], name\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HEADERS = {
    "longer than the file": (2**40, b"{}"),
    "as long as a number can say": (2**64 - 1, b"{}"),
    "nested": (None, b'{"a":' * 50_000),
    "no object": (None, b"[" * 100_000),
    "a shape that overflows": (None, {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}),
    "a shape that wraps to nothing": (
        None,
        {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
    ),
    "a negative size": (None, {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}),
    "many dimensions": (None, {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}),
    "beyond the end": (None, {"dtype": "F32", "shape": [1], "data_offsets": [2**60, 2**60 + 4]}),
    "backwards": (None, {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_claims_the_impossible(folder, family, case):
    length, header = HEADERS[case]
    if isinstance(header, dict):
        header = json.dumps({PROJECTION[family]: header}).encode()
    length = len(header) if length is None else length
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    error = refused(folder, str(folder / "model.safetensors"))
    assert len(error) < 10_000


def test_a_configuration_that_is_too_long_says_so(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr("nbllm.models.loading._MAX_JSON", 10)
    with pytest.raises(WeightsError, match="config.json cannot be read: More than 10 bytes"):
        load_model(tmp_path)
