"""GGUF models against transformers and the gguf package, in both directions."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbllm.core.errors import UserError, WeightsError
from nbllm.data import train_tokenizer
from nbllm.lm import LM
from nbllm.models.gguf import read_header
from nbllm.models.gguf.reading import load_weights
from nbllm.opening import load

TEXT = ["the cat sat on the mat and the dog sat on the log", "def f(x):\n    return x + 1"]
READ = (
    Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q4_K, Type.Q5_K,
    Type.Q6_K,
)  # fmt: skip
CASES = {
    "gpt2": {},
    "gpt2-untied": {"tie_embeddings": False},
    "llama": {"num_kv_heads": 2},
    "llama-untied": {"num_kv_heads": 4, "tie_embeddings": False, "rope_theta": 5e5},
    "llama-linear": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "llama-3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_positions": 64}},
    "qwen2": {"num_kv_heads": 2},
    "qwen2-untied": {"num_kv_heads": 1, "tie_embeddings": False},
}


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(TEXT * 4, 300)
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def make(case, tokenizer, **changes):
    # 1024 positions: of a gpt2's GGUF, transformers reads no other number.
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_positions": 1024, "vocab_size": 320}
    lm = LM.new(
        case.split("-")[0],
        tokenizer=tokenizer,
        **{**shape, "initializer_range": 0.2, **CASES.get(case, {}), **changes},
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and normalizations that matter
        for weight in lm.model.parameters():
            if weight.dim() < 2:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return lm


def ids(*shape):
    return torch.randint(300, shape, generator=torch.Generator().manual_seed(2))


def theirs(path, **changes):
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, **changes
    )


def as_stored(name, weight, lm):
    """The rows as llama.cpp's converter puts them: LlamaModel.permute of convert_hf_to_gguf.py."""
    heads = {"attn_q": lm.config.num_heads, "attn_k": lm.config.num_kv_heads}.get(name.split(".")[-2], 0)
    if lm.config.family != "llama" or not heads:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


# transformers reads no scaling of a GGUF.
READ_BY_TRANSFORMERS = [case for case in CASES if "rope_scaling" not in CASES[case]]


@pytest.mark.parametrize("case", ["llama-linear", "llama-3"])
def test_a_scaling_of_positions_is_kept(case, tokenizer, tmp_path):
    lm = make(case, tokenizer)
    path = lm.save(tmp_path / "x.gguf")
    reader = GGUFReader(path)
    opened = load(path)
    assert opened.config.rope_scaling == lm.config.rope_scaling
    assert torch.equal(opened.model(ids(2, 23)), lm.model(ids(2, 23)))
    if case == "llama-3":  # the divisors of the frequencies, as llama.cpp's converter computes them
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        scaling = {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }  # fmt: skip
        config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_scaling=scaling)
        plain = 1e4 ** (-np.arange(0, 16, 2) / 16)
        stored = {tensor.name: tensor.data for tensor in reader.tensors}["rope_freqs.weight"]
        np.testing.assert_allclose(plain / stored, LlamaRotaryEmbedding(config).inv_freq, rtol=1e-6)
    else:
        assert reader.fields["llama.rope.scaling.type"].contents() == "linear"
        assert reader.fields["llama.rope.scaling.factor"].contents() == 4.0


@pytest.mark.parametrize(("case", "kind"), [("llama", "yarn"), ("qwen2", "llama3")])
def test_a_scaling_that_gguf_cannot_state_is_refused(case, kind, tokenizer, tmp_path):
    lm = make(case, tokenizer, rope_scaling={"kind": kind, "factor": 4.0, "original_max_positions": 64})
    with pytest.raises(UserError, match="is not written with rotary positions scaled 4 times"):
        lm.save(tmp_path / "x.gguf")


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("case", READ_BY_TRANSFORMERS)
def test_transformers_opens_what_we_write(case, dtype, tokenizer, tmp_path):
    lm = make(case, tokenizer)
    path = lm.save(tmp_path / "x.gguf", dtype=dtype)
    ours, reference, tokens = load(path), theirs(path), ids(2, 23)
    logits = ours.model(tokens)
    torch.testing.assert_close(logits, reference(tokens).logits, atol=1e-4, rtol=0)
    if dtype == "F32":
        assert torch.equal(logits, lm.model(tokens))
    assert ours.config == lm.config.replace(initializer_range=0.02)
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXT:
        expected = lm.tokenizer(text)["input_ids"]
        assert ours.tokenizer(text)["input_ids"] == again(text)["input_ids"] == expected
    assert ours.tokenizer.chat_template == again.chat_template == tokenizer.chat_template
    assert len(ours.tokenizer) == len(tokenizer)


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("case", CASES)
def test_the_package_reads_what_we_write(case, dtype, tokenizer, tmp_path):
    lm = make(case, tokenizer)
    reader = GGUFReader(lm.save(tmp_path / "x.gguf", dtype=dtype))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"F32", dtype}
    attention = lm.model.blocks[1].attention
    parts = [layer.weight.detach() for layer in (attention.query, attention.key, attention.value)]
    expected = {
        "token_embd.weight": lm.model.embedding.weight.detach(),
        "output_norm.weight": lm.model.norm.weight.detach(),
        "blk.1.attn_output.weight": attention.output.weight.detach(),
        "blk.1.ffn_down.weight": lm.model.blocks[1].feed_forward.down.weight.detach(),
    }
    if lm.config.family == "gpt2":
        expected["blk.1.attn_qkv.weight"] = torch.cat(parts)
    else:
        expected |= {f"blk.1.attn_{name}.weight": part for name, part in zip("qkv", parts, strict=True)}
    for name, weight in expected.items():
        kind = stored[name].tensor_type
        packed = quants.quantize(as_stored(name, weight.numpy(), lm), kind)
        assert np.array_equal(stored[name].data, packed), name


def write_llama(path, reference, kind):
    """A transformers model in a GGUF of random blocks of one type; no code of ours takes part."""
    generator = np.random.default_rng(3)
    config = reference.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    layer = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
        "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
        "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for name, weight in reference.state_dict().items():
        parts = name.split(".")
        short = f"blk.{parts[2]}.{layer[parts[-2]]}" if "layers" in name else names[parts[-2]]
        if weight.dim() == 1:
            writer.add_tensor(f"{short}.weight", weight.numpy())
        else:
            packed = blocks(kind, generator, tuple(weight.shape))
            writer.add_tensor(f"{short}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def blocks(kind, generator, shape):
    """Random numbers in a type; for the K types, which the package cannot pack, random blocks with small scales."""
    numbers, nbytes = GGML_QUANT_SIZES[kind]
    if not kind.name.endswith("_K"):
        return quants.quantize(generator.normal(0, 0.1, shape).astype(np.float32), kind)
    raw = generator.integers(0, 256, (shape[0] * shape[1] // numbers, nbytes), dtype=np.uint8)
    scale = generator.uniform(1e-4, 4e-4, (len(raw), 2)).astype(np.float16).view(np.uint8)
    if kind == Type.Q6_K:
        raw[:, -2:] = scale[:, :2]
    else:
        raw[:, :4] = scale
    return raw.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_type_as_transformers_reads_it(kind, tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, head_dim=64,
    )  # fmt: skip
    write_llama(tmp_path / "x.gguf", LlamaForCausalLM(config), kind)
    lm = load(tmp_path / "x.gguf", tokenizer=tokenizer)
    assert lm.model.embedding.weight.dtype == torch.float32
    reference, tokens = theirs(tmp_path / "x.gguf"), ids(2, 23)
    with torch.inference_mode():
        torch.testing.assert_close(lm.model(tokens), reference(tokens).logits, atol=1e-4, rtol=0)
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "x.gguf").tensors}
    down = stored["blk.1.ffn_down.weight"]
    expected = quants.dequantize(down.data, down.tensor_type)
    assert np.array_equal(lm.model.blocks[1].feed_forward.down.weight.detach().numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_asked_for(dtype, tokenizer, tmp_path):
    path = make("llama", tokenizer).save(tmp_path / "x.gguf", dtype="Q8_0")
    wide, narrow = load(path), load(path, dtype=dtype)
    for (name, weight), (_, exact) in zip(
        narrow.model.named_parameters(), wide.model.named_parameters(), strict=True
    ):
        assert weight.dtype == dtype and torch.equal(weight, exact.to(dtype)), name
    with pytest.raises(UserError, match=r"dtype is torch\.float64"):
        load(path, dtype=torch.float64)


def test_biases_of_a_llama_come_back(tokenizer, tmp_path):
    lm = make("llama", tokenizer, attention_bias=True, feed_forward_bias=True)
    opened = load(lm.save(tmp_path / "x.gguf"))
    assert torch.equal(opened.model(ids(1, 9)), lm.model(ids(1, 9)))


def test_a_half_precision_model_is_written_in_kind(tokenizer, tmp_path):
    for dtype, kind in ((torch.float16, "F16"), (torch.bfloat16, "F32")):
        lm = make("llama", tokenizer)
        lm.model.to(dtype)
        path = lm.save(tmp_path / "x.gguf")
        assert {tensor.tensor_type.name for tensor in GGUFReader(path).tensors} == {kind, "F32"}
        opened = load(path, dtype=dtype)
        for (name, got), (_, expected) in zip(
            opened.model.named_parameters(), lm.model.named_parameters(), strict=True
        ):
            assert torch.equal(got, expected), name


def test_what_gguf_cannot_hold(tokenizer, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF, what was here before")
    for case, changes, dtype, message in (
        ("gpt2", {"activation": "relu"}, None, "means activation='gelu_tanh'"),
        ("llama", {"hidden_size": 48}, "Q8_0", "Q8_0 packs 32 elements of a row"),
        ("llama", {}, "Q4_0", "Known: F32, F16, Q8_0"),
    ):
        with pytest.raises(UserError, match=message):
            make(case, tokenizer, **changes).save(path, dtype=dtype)
    lm = make("llama", tokenizer)
    with torch.no_grad():
        lm.model.blocks[0].attention.output.weight[3, 4] = 1e5
    with pytest.raises(UserError, match=r"blk\.0\.attn_output\.weight holds values that F16 cannot hold"):
        lm.save(path, dtype="F16")
    assert path.read_bytes() == b"GGUF, what was here before"
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]
    with pytest.raises(UserError, match="dtype is for GGUF files"):
        lm.save(tmp_path / "directory", dtype="F16")


def rewrite(source, target, drop=(), replace=(), add=()):
    """Copy a file with other metadata; `replace` maps keys to numbers, `add` holds tensors."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    replace = dict(replace)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in drop:
            continue
        kinds = field.types
        value = replace.pop(key, field.contents())
        writer.add_key_value(key, value, kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None)
    for key, value in replace.items():
        adders = {
            bool: writer.add_bool,
            str: writer.add_string,
            float: writer.add_float32,
            int: writer.add_uint64,
        }
        adders[type(value)](key, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, data in dict(add).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


ONES = np.ones(8, dtype=np.float32)


def test_entries_that_change_nothing_are_taken(tokenizer, tmp_path):
    lm = make("llama", tokenizer)
    neutral = {
        "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0, "llama.attention.sliding_window": 0,
        "llama.rope.scaling.original_context_length": 64, "llama.expert_used_count": 0, "llama.logit_scale": 1.0,
        "general.type": "model", "general.url": "https://example.org", "tokenizer.ggml.add_sep_token": False,
        "tokenizer.ggml.fim_pre_token_id": 3, "tokenizer.ggml.remove_extra_whitespaces": True,
    }  # fmt: skip
    path = rewrite(
        lm.save(tmp_path / "good.gguf"), tmp_path / "more.gguf", replace=neutral,
        add={"rope_freqs.weight": ONES},
    )  # fmt: skip
    opened = load(path)
    assert torch.equal(opened.model(ids(1, 9)), lm.model(ids(1, 9)))
    assert opened.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ["llama.block_count"]}, "lacks llama.block_count"),
        (
            {"drop": ["llama.attention.layer_norm_rms_epsilon"]},
            "lacks llama.attention.layer_norm_rms_epsilon",
        ),
        ({"drop": ["blk.1.ffn_up.weight"]}, "lacks the tensor blk.1.ffn_up.weight"),
        ({"drop": ["token_embd.weight"]}, "lacks the tensor token_embd.weight"),
        ({"add": {"rope_freqs.weight": 3 * ONES}}, "scaled in a way that is not implemented"),
        ({"add": {"rope_freqs.weight": 0 * ONES}}, "must hold 8 positive numbers"),
        ({"add": {"rope_freqs.weight": ONES[:5]}}, r"F32 of the shape \[5\]; it must be F32 of \[8\]"),
        ({"replace": {"llama.block_count": 2**31}}, "block_count is 2147483648; the file has 2 blocks"),
        ({"replace": {"llama.embedding_length": 2**31}}, "sizes that no tensor can have|has the shape"),
        (
            {"replace": {"llama.feed_forward_length": 2**32 - 1}},
            "feed_forward_length is 4294967295; it must be at most",
        ),
        ({"replace": {"llama.attention.head_count": 5}}, "has the shape|not a multiple"),
        ({"replace": {"llama.attention.head_count": 0}}, "head_count is 0"),
        ({"replace": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling.type is 'yarn'"),
        ({"replace": {"llama.expert_count": 8}}, "expert_count is 8"),
        ({"replace": {"llama.attention.sliding_window": 4096}}, "attention.sliding_window is 4096"),
        ({"replace": {"llama.rope.scaling.factor": 0.5}}, "factor must be between 1 and"),
        ({"replace": {"llama.logit_scale": 0.5}}, "logit_scale is 0.5"),
        ({"replace": {"llama.attention.temperature_scale": 0.5}}, "'attention.temperature_scale'"),
        ({"replace": {"general.type": "adapter"}}, "general.type is 'adapter'"),
        ({"replace": {"tokenizer.ggml.normalizer": "lower"}}, "'normalizer' .* is not implemented"),
        ({"replace": {"llama.rope.dimension_count": 8}}, "rope.dimension_count is 8"),
        ({"replace": {"llama.vocab_size": 2**30}}, "vocab_size is 1073741824"),
        ({"drop": ["tokenizer.ggml.model"]}, "describes no tokenizer"),
        ({"replace": {"tokenizer.ggml.model": "rwkv"}}, "the tokenizer 'rwkv'"),
        ({"replace": {"tokenizer.ggml.pre": "viking"}}, "pre-tokenizer is 'viking'"),
        ({"drop": ["tokenizer.ggml.pre"]}, "pre-tokenizer is ''"),
        ({"drop": ["tokenizer.ggml.merges"]}, "has no merges"),
        (
            {"replace": {"tokenizer.ggml.merges": ["t h", "th e x"]}},
            "The merge 'th e x' does not join two parts",
        ),
        ({"replace": {"tokenizer.ggml.merges": ["t zzzz"]}}, "do not fit together"),
        ({"replace": {"tokenizer.ggml.eos_token_id": 70000}}, "eos_token_id is 70000"),
        ({"replace": {"tokenizer.ggml.token_type": [1, 1]}}, "token_type does not hold a number for each"),
    ],
)
def test_files_that_contradict_themselves(changes, message, tokenizer, tmp_path):
    source = make("llama", tokenizer).save(tmp_path / "good.gguf")
    path = rewrite(source, tmp_path / "bad.gguf", **changes)
    with pytest.raises(WeightsError, match=message) as caught:
        load(path)
    assert "bad.gguf" in str(caught.value)


def test_numbers_that_are_not_finite(tokenizer, tmp_path):
    path = make("llama", tokenizer).save(tmp_path / "x.gguf")
    info = read_header(path).tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset + 40 : info.offset + 44] = np.float32("nan").tobytes()
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"blk\.1\.ffn_up\.weight holds values that are not finite"):
        load_weights(read_header(path))


def test_another_architecture(tokenizer, tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"architecture is 'mamba'.*\n.*\n.*Known: gpt2, llama, qwen2"):
        load(tmp_path / "x.gguf", tokenizer=tokenizer)
