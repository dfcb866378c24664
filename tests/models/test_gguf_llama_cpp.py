"""llama.cpp beside us: it opens what we write, and we read what its quantizer makes.

llama.cpp rounds activations to the type of the weights (16 bits, or 8 bits in blocks of 32 or 256), we do not, so only
F32 can agree to the last digits; GPT-2 less, for its GELU is a table of 16-bit numbers there. Else the distributions
are compared: the mean of their Kullback-Leibler divergences, in nats a token. What was measured stands at each bound.
"""

import ctypes

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants

from nbllm import data
from nbllm.lm import LM
from nbllm.opening import load

llama_cpp = pytest.importorskip("llama_cpp")

F32 = llama_cpp.GGML_TYPE_F32
LOGITS = {"gpt2": 1e-2, "llama": 1e-3, "qwen2": 1e-3}  # measured on 200 tokens: 3e-3, 6e-5, 6e-5
# The measured mean divergence of small models, times about three; the model's own entropy is about 6 nats.
QUANTIZED = {
    "F16": ("MOSTLY_F16", 1e-5),
    "BF16": ("MOSTLY_BF16", 6e-4),
    "Q8_0": ("MOSTLY_Q8_0", 3e-3),
    "Q4_0": ("MOSTLY_Q4_0", 6e-3),
    "Q4_1": ("MOSTLY_Q4_1", 7e-3),
    "Q5_0": ("MOSTLY_Q5_0", 6e-3),
    "Q5_1": ("MOSTLY_Q5_1", 6e-3),
    "Q4_K": ("MOSTLY_Q4_K_S", 1.3e-2),
    "Q5_K": ("MOSTLY_Q5_K_S", 1.3e-2),
    "Q6_K": ("MOSTLY_Q6_K", 1.3e-2),
}
QUESTIONS = ("What is the capital of France?", "Name three colours.", "What is photosynthesis?", "Say hello.")


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer(data.load("pydocs").select(range(20)), vocab_size=1024)


@pytest.fixture(scope="module")
def text():
    return "\n".join(data.load("pydocs")["text"][:3])


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2"])
def small(request, tokenizer, tmp_path_factory):
    """A model with rows of 256 and 512 numbers, which the K types need, and its F32 file."""
    grouped = {} if request.param == "gpt2" else {"num_kv_heads": 2}
    lm = LM.new(
        request.param, tokenizer=tokenizer, hidden_size=256, num_layers=2, num_heads=4, intermediate_size=512,
        max_positions=512, initializer_range=0.1, **grouped,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and normalizations that matter
        for weight in lm.model.parameters():
            if weight.dim() < 2:
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return lm, lm.save(tmp_path_factory.mktemp("small") / "small.gguf", dtype="F32")


def open_llama(path, **changes):
    """Open a file in llama.cpp, keys and values in 32 bits, which is not its default."""
    options = dict(
        n_ctx=512, n_batch=512, n_threads=2, n_threads_batch=2, verbose=False, type_k=F32, type_v=F32
    )
    return llama_cpp.Llama(str(path), **options, **changes)


def by_llama(path, tokens):
    """Return llama.cpp's logits."""
    model = open_llama(path, logits_all=True)
    model.eval(tokens)
    logits = torch.from_numpy(np.array(model.scores[: len(tokens)]))
    model.close()
    return logits


@torch.inference_mode()
def by_us(lm, tokens):
    return lm.model(torch.tensor([tokens]))[0].float()


def divergence(ours, theirs):
    """Return the mean Kullback-Leibler divergence of two logits' distributions, in nats a token."""
    ours, theirs = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def greedy(model, prompt, count=16):
    """Return llama.cpp's likeliest tokens after a prompt."""
    model.reset()
    model.eval(prompt)
    made = []
    while len(made) < count and (token := int(model.sample(temp=0))) != model.token_eos():
        made.append(token)
        model.eval([token])
    return made


def quantize(source, target, kind, *, pure=False, again=False):
    """Have llama.cpp's own quantizer make a file; `pure`: of one type, without its mixtures."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}"), 2
    options.pure, options.allow_requantize = pure, again
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(options)) == 0
    return target


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
def test_it_opens_what_we_write(small, dtype, text, tmp_path):
    lm, _ = small
    path = lm.save(tmp_path / "x.gguf", dtype=dtype)
    tokens = lm.tokenizer(text)["input_ids"][:200]
    ours, theirs = by_us(load(path, dtype=torch.float32), tokens), by_llama(path, tokens)
    if dtype == "F32":
        torch.testing.assert_close(theirs, ours, atol=LOGITS[lm.config.family], rtol=0)
    assert divergence(ours, theirs) < {"F32": 1e-6, **{k: v for k, (_, v) in QUANTIZED.items()}}[dtype]
    theirs = open_llama(path, vocab_only=True)
    for line in text.splitlines()[:200]:
        assert theirs.tokenize(line.encode(), add_bos=False, special=True) == lm.tokenizer(line)["input_ids"]


@pytest.mark.parametrize("kind", QUANTIZED)
def test_we_read_what_its_quantizer_makes(small, kind, text, tmp_path):
    """As the gguf package expands the blocks, bit for bit; as llama.cpp itself does, but for its fused rounding."""
    lm, source = small
    ftype, bound = QUANTIZED[kind]
    path = quantize(source, tmp_path / "x.gguf", ftype, pure=True)
    opened = load(path, dtype=torch.float32)
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    assert {tensor.tensor_type.name for tensor in stored.values()} == {kind, "F32"}
    for name, weight in (
        ("token_embd.weight", opened.model.embedding.weight),
        ("blk.1.ffn_down.weight", opened.model.blocks[1].feed_forward.down.weight),
    ):
        tensor = stored[name]
        assert tensor.tensor_type.name == kind
        assert np.array_equal(weight.detach().numpy(), quants.dequantize(tensor.data, tensor.tensor_type)), (
            name
        )
    expanded = load(quantize(path, tmp_path / "wide.gguf", "ALL_F32", again=True))
    for (name, got), (_, expected) in zip(
        opened.model.named_parameters(), expanded.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-6, msg=name)
    tokens = lm.tokenizer(text)["input_ids"][:200]
    assert divergence(by_us(opened, tokens), by_llama(path, tokens)) < bound


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M"])
def test_we_read_its_mixtures(small, kind, text, tmp_path):
    lm, source = small
    path = quantize(source, tmp_path / "x.gguf", f"MOSTLY_{kind}")
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds == {"F32", kind.removesuffix("_M"), "Q6_K"}
    tokens = lm.tokenizer(text)["input_ids"][:200]
    assert divergence(by_us(load(path), tokens), by_llama(path, tokens)) < 1.3e-2


@pytest.fixture(scope="module")
def real(smollm2):
    return load(smollm2)


@pytest.fixture(scope="module")
def prompts(real):
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [
        real.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]


@pytest.mark.realmodel
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
def test_it_opens_a_published_model_that_we_wrote(real, prompts, text, dtype, tmp_path):
    """Measured: F32 8e-5 at most; divergences 2e-11, 1.4e-6 and 3.4e-3."""
    path = real.save(tmp_path / "x.gguf", dtype=dtype)
    written = load(path, dtype=torch.float32)
    tokens = real.tokenizer(text)["input_ids"][:200]
    ours, theirs = by_us(written, tokens), by_llama(path, tokens)
    if dtype == "F32":
        torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert divergence(ours, theirs) < {"F32": 1e-6, "F16": 1e-5, "Q8_0": 1e-2}[dtype]
    if dtype != "Q8_0":
        model = open_llama(path)
        for prompt in prompts:
            answer = written.generate(prompt, temperature=0, max_new_tokens=16).tokens
            assert greedy(model, real.tokenizer(prompt)["input_ids"]) == answer, prompt


@pytest.mark.realmodel
@pytest.mark.slow
def test_the_published_file(real, text, smollm2):
    """Measured: 3.7e-3 nats a token, 96 of 100 likeliest tokens the same. Written as F32, the same weights agree to the
    last digits (above): what differs here is the rounding of llama.cpp's activations to 8 bits.
    """
    tokens = real.tokenizer(text)["input_ids"][:200]
    ours, theirs = by_us(real, tokens), by_llama(smollm2, tokens)
    assert divergence(ours, theirs) < 1e-2
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


@pytest.mark.realmodel
@pytest.mark.slow
def test_it_cuts_text_as_we_do(real, real_lines, smollm2):
    theirs = open_llama(smollm2, vocab_only=True)
    for line in real_lines:
        assert (
            theirs.tokenize(line.encode(), add_bos=False, special=True) == real.tokenizer(line)["input_ids"]
        ), line


@pytest.mark.realmodel
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_S", "Q6_K"])
def test_a_published_model_that_it_quantizes(real, text, kind, tmp_path):
    """Rows of 576 numbers do not divide into 256: most matrices fall back to other types. Measured: up to 7e-3."""
    source = real.save(tmp_path / "wide.gguf", dtype="F32")
    path = quantize(source, tmp_path / "x.gguf", f"MOSTLY_{kind}")
    assert any(tensor.tensor_type.name.endswith("_K") for tensor in GGUFReader(path).tensors)
    tokens = real.tokenizer(text)["input_ids"][:200]
    assert divergence(by_us(load(path), tokens), by_llama(path, tokens)) < 2e-2
