"""A published model, SmolLM2-135M-Instruct in Q4_1, against transformers on the same file.

NBLLM_TEST_GGUF is the file; without it nothing here runs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from nbllm import data
from nbllm.lm import load
from nbllm.models.gguf import read_header

FILE = os.environ.get("NBLLM_TEST_GGUF", "")
pytestmark = [
    pytest.mark.realmodel,
    pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason="NBLLM_TEST_GGUF names no file"),
]
QUESTIONS = [
    "What is the capital of France?", "Name three colours.", "What is 2 + 2?", "Who wrote Hamlet?",
    "Translate 'cat' into Spanish.", "What does a compiler do?", "Name a planet.", "Say hello.",
    "What is the opposite of hot?", "How many days has a week?", "What is H2O?", "Name a prime number.",
    "Write a line of Python.", "What is photosynthesis?", "Name an ocean.", "What is a noun?",
    "Who painted the Mona Lisa?", "What is 10 divided by 5?", "Name a fruit.", "What is the sun?",
]  # fmt: skip
ODD = [
    "", " ", "   ", "\t", "日本語のテキスト 123", "👩‍👩‍👧‍👦 🎉🎉", "  12  34   5", "naïve café e\u0301", "½ ² ③ ٣٤٥",
    "<|im_start|>user\nhi<|im_end|>", "a\r\nb", "\u00a0x\u2003y", "مرحبا بالعالم", "Привет, мир", "don't WE'LL I'M",
]  # fmt: skip


@pytest.fixture(scope="module")
def ours():
    return load(FILE)


@pytest.fixture(scope="module")
def theirs():
    path = Path(FILE)
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def lines():
    found = [
        line
        for name in ("pydocs", "pystdlib")
        for text in data.load(name)["text"]
        for line in text.splitlines()
    ]
    return found[:: len(found) // 2000][: 2000 - len(ODD)] + ODD


@torch.inference_mode()
def test_logits_on_real_text(ours, theirs):
    text = "\n".join(data.load("pydocs")["text"][:3])
    tokens = torch.tensor([ours.tokenizer(text)["input_ids"][:200]])
    assert tokens.shape == (1, 200)
    torch.testing.assert_close(ours.model(tokens), theirs(tokens).logits, atol=1e-3, rtol=0)


def test_the_same_greedy_answers(ours, theirs):
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = ours.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        answer = ours.generate(prompt, temperature=0, max_new_tokens=16)
        tokens = ours.tokenizer(prompt, return_tensors="pt")
        out = theirs.generate(**tokens, do_sample=False, max_new_tokens=16, pad_token_id=2, eos_token_id=2)
        new = out[0, tokens["input_ids"].shape[1] :]
        assert str(answer) == ours.tokenizer.decode(new, skip_special_tokens=True), question


def test_token_ids(ours, lines):
    """transformers does not know the pre-tokenizer "smollm" and cuts as GPT-2 does; the model's own, as llama.cpp
    has it too, first cuts every number's sign off. What differs: several blanks before a digit, and signs like ².
    """
    path = Path(FILE)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert theirs.chat_template == ours.tokenizer.chat_template
    assert len(lines) == 2000
    for line in lines:
        if not re.search(r"\s\s\d", line) and not any(sign.isnumeric() for sign in line if sign > "\x7f"):
            assert ours.tokenizer(line)["input_ids"] == theirs(line)["input_ids"], line
        assert ours.tokenizer.decode(ours.tokenizer(line)["input_ids"]) == line
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for line in lines:
        assert ours.tokenizer(line)["input_ids"] == theirs(line)["input_ids"], line


def test_written_again(ours, lines, tmp_path):
    path = ours.save(tmp_path / "again.gguf")
    before, after = read_header(Path(FILE)), read_header(path)
    assert before.tensors.keys() == after.tensors.keys()
    again = load(path)
    assert again.config == ours.config
    for (name, got), (_, expected) in zip(
        again.model.named_parameters(), ours.model.named_parameters(), strict=True
    ):
        assert torch.equal(got, expected), name
    assert [again.tokenizer(line)["input_ids"] for line in lines] == [
        ours.tokenizer(line)["input_ids"] for line in lines
    ]
    assert again.tokenizer.chat_template == ours.tokenizer.chat_template


MEASURE = """
import resource, sys, time
import torch, transformers
from transformers import PreTrainedTokenizerFast
from nbllm.lm import load
import nbllm.models.gguf.reading
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
lm = load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
seconds, size = time.perf_counter() - start, sum(weight.nbytes for weight in lm.model.parameters())
print(seconds, (peak() - before) / size)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_time_and_memory(dtype):
    """Three seconds on two cores, 1.3 times the model; libraries already imported."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, FILE, dtype], check=True, capture_output=True, text=True, timeout=300
    )
    seconds, ratio = map(float, run.stdout.split())
    assert seconds < 3
    assert ratio < 1.3
