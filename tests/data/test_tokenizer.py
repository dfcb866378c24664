import os
import random
import subprocess
import sys

import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.data import END_OF_TEXT, load, split, train_tokenizer

HARD = [
    "",
    " leading, trailing  \n\n\t ",
    "a .b ,c !d don't I'm",  # what clean_up_tokenization_spaces would change
    "Grüße, 世界 👩‍👩‍👧‍👦 \u202e\u0000\x07 \r\n\ufeff\U0010ffff",
    f"literal {END_OF_TEXT} inside",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the quick brown fox. " * 20, "def add(a, b):\n    return a + b\n" * 20], 400)


@pytest.mark.parametrize("text", HARD)
def test_any_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_random_unicode_comes_back_unchanged(tokenizer):
    rng = random.Random(0)
    for _ in range(200):
        points = [rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(20)]
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.unk_token is None
    assert tokenizer("fox")["input_ids"] == tokenizer("fox", add_special_tokens=False)["input_ids"]
    assert (
        len(set(tokenizer.get_vocab().values())) == len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    )


def test_saved_and_opened_by_transformers(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.decode(again(text)["input_ids"]) == text
    assert again.eos_token_id == tokenizer.eos_token_id
    assert again.pad_token_id == tokenizer.pad_token_id


def test_same_text_same_tokenizer_in_another_process_with_other_threads(tokenizer):
    code = (
        "from nbllm.data import train_tokenizer\n"
        "texts = ['the quick brown fox. ' * 20, 'def add(a, b):\\n    return a + b\\n' * 20]\n"
        "t = train_tokenizer(texts, 400)\n"
        "print(t.backend_tokenizer.to_str())"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == tokenizer.backend_tokenizer.to_str()


def test_pydocs_are_compressed_well():
    training, held = split(load("pydocs"))
    tokenizer = train_tokenizer(training, 4096)
    assert len(tokenizer) == 4096
    text = "\n".join(held["text"])
    assert len(text.encode()) / len(tokenizer(text)["input_ids"]) > 3.0  # bytes a token on held-out text


def test_bad_requests_are_named():
    with pytest.raises(UserError, match="at least 257"):
        train_tokenizer(["a"], 256)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], 300)
    with pytest.raises(DataError, match=r"Put it into a list"):
        train_tokenizer("one string", 300)
    with pytest.raises(DataError, match="Document 1 is not text but int"):
        train_tokenizer(["a", 3], 300)
