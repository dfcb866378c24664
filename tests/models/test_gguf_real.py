"""A published model, SmolLM2-135M-Instruct in Q4_1, against transformers and the gguf package on the same file."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbllm import data
from nbllm.models.gguf import read_header
from nbllm.opening import load

pytestmark = [pytest.mark.realmodel, pytest.mark.slow]
QUESTIONS = [
    "What is the capital of France?", "Name three colours.", "What is 2 + 2?", "Who wrote Hamlet?",
    "Translate 'cat' into Spanish.", "What does a compiler do?", "Name a planet.", "Say hello.",
    "What is the opposite of hot?", "How many days has a week?", "What is H2O?", "Name a prime number.",
    "Write a line of Python.", "What is photosynthesis?", "Name an ocean.", "What is a noun?",
    "Who painted the Mona Lisa?", "What is 10 divided by 5?", "Name a fruit.", "What is the sun?",
]  # fmt: skip


@pytest.fixture(scope="module")
def ours(smollm2):
    return load(smollm2)


def read_by_transformers(path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def theirs(smollm2):
    return read_by_transformers(smollm2)


@pytest.fixture(scope="module")
def tokens(ours):
    text = "\n".join(data.load("pydocs")["text"][:3])
    return torch.tensor([ours.tokenizer(text)["input_ids"][:200]])


@torch.inference_mode()
def test_logits_on_real_text(ours, theirs, tokens):
    assert tokens.shape == (1, 200)
    torch.testing.assert_close(ours.model(tokens), theirs(tokens).logits, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_the_same_greedy_answers(ours, theirs):
    """After the prompt and what we answered so far, transformers too would take our next token, at every place."""
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = ours.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = ours.generate(prompt, temperature=0, max_new_tokens=16)
        assert answer.stopped_by in ("eos", "length")
        before = ours.tokenizer(prompt)["input_ids"]
        chosen = answer.tokens + [ours.tokenizer.eos_token_id] * (answer.stopped_by == "eos")
        logits = theirs(torch.tensor([before + chosen])).logits[0, len(before) - 1 : -1]
        assert logits.argmax(-1).tolist() == chosen, question


def test_token_ids(ours, real_lines, smollm2):
    """transformers does not know the pre-tokenizer "smollm" and cuts as GPT-2 does; the model's own, as llama.cpp
    has it too, first cuts every number's sign off. What differs: several blanks before a digit, and signs like ².
    """
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    assert theirs.chat_template == ours.tokenizer.chat_template
    assert len(real_lines) == 2000
    for line in real_lines:
        if not re.search(r"\s\s\d", line) and not any(sign.isnumeric() for sign in line if sign > "\x7f"):
            assert ours.tokenizer(line)["input_ids"] == theirs(line)["input_ids"], line
        assert ours.tokenizer.decode(ours.tokenizer(line)["input_ids"]) == line
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for line in real_lines:
        assert ours.tokenizer(line)["input_ids"] == theirs(line)["input_ids"], line


@torch.inference_mode()
def test_written_again(ours, theirs, real_lines, tokens, smollm2, tmp_path):
    """Opened by us, by the gguf package and by transformers: the same numbers, bit for bit."""
    path = ours.save(tmp_path / "again.gguf")
    before, after = read_header(smollm2), read_header(path)
    assert before.tensors.keys() == after.tensors.keys()
    again = load(path)
    assert again.config == ours.config
    for (name, got), (_, expected) in zip(
        again.model.named_parameters(), ours.model.named_parameters(), strict=True
    ):
        assert torch.equal(got, expected), name
    assert [again.tokenizer(line)["input_ids"] for line in real_lines] == [
        ours.tokenizer(line)["input_ids"] for line in real_lines
    ]
    assert again.tokenizer.chat_template == ours.tokenizer.chat_template
    for tensor in GGUFReader(path).tensors:
        info = before.tensors[tensor.name]
        packed = np.fromfile(smollm2, np.uint8, info.nbytes, offset=info.offset)
        expected = quants.dequantize(packed.reshape(*info.shape[:-1], -1), info.type)
        assert np.array_equal(tensor.data, expected.reshape(tensor.data.shape)), tensor.name
    assert torch.equal(read_by_transformers(path)(tokens).logits, theirs(tokens).logits)


MEASURE = """
import sys
import torch, transformers
from transformers import PreTrainedTokenizerFast
from nbllm.opening import load
import nbllm.models.gguf.reading
def peak():  # of this program; getrusage would tell its parent's where that is larger
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
lm = load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print((peak() - before) / sum(weight.nbytes for weight in lm.model.parameters()))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory(dtype, smollm2):
    """At most 1.3 times the model, libraries apart; tests/bench/bench_loading.py tells the time too."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, smollm2, dtype],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert 1 < float(run.stdout) < 1.3
