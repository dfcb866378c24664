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


def test_same_text_same_tokenizer_in_another_process_with_other_threads():
    code = (
        "from nbllm.data import train_tokenizer\n"
        "texts = ['the quick brown fox. ' * 20, 'def add(a, b):\\n    return a + b\\n' * 20]\n"
        "t = train_tokenizer(texts, 280)\n"
        "print(t.backend_tokenizer.to_str())"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    texts = ["the quick brown fox. " * 20, "def add(a, b):\n    return a + b\n" * 20]
    assert done.stdout.strip() == train_tokenizer(texts, 280).backend_tokenizer.to_str()


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
    with pytest.raises(DataError, match="no file, folder or embedded source 'one string'") as caught:
        train_tokenizer("one string", 300)
    assert "[text]" in caught.value.hint
    with pytest.raises(DataError, match="Document 1 is not text but int"):
        train_tokenizer(["a", 3], 300)
    with pytest.raises(UserError, match="Did you mean 'character'"):
        train_tokenizer(["a"], kind="charcter")
    with pytest.raises(UserError, match="whole number"):
        train_tokenizer(["a"], "x")
    with pytest.raises(UserError, match="at least 3"):
        train_tokenizer(["a"], 2, kind="character")
    with pytest.raises(UserError, match="has 257 tokens, not 300"):
        train_tokenizer(["a"], 300, kind="byte")


def test_a_smaller_vocabulary_than_asked_is_said(capsys):
    tokenizer = train_tokenizer(["aaaa bbbb"], 500)
    assert f"The vocabulary has {len(tokenizer)} tokens, not 500" in capsys.readouterr().out
    train_tokenizer(["aaaa bbbb"], 258)
    train_tokenizer(["aaaa bbbb"])  # nothing was asked for
    assert capsys.readouterr().out == ""


def test_files_and_lists_of_files_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("xyzzy " * 50)
    wanted = train_tokenizer(["xyzzy " * 50], 260).get_vocab()
    path = tmp_path / "a.txt"
    for source in (str(path), path, [str(path)], (text for text in ["xyzzy " * 50])):
        assert train_tokenizer(source, 260).get_vocab() == wanted


@pytest.mark.parametrize("text", HARD)
def test_bytes_are_a_vocabulary_that_holds_any_text(text):
    tokenizer = train_tokenizer(["whatever"], kind="byte")
    assert len(tokenizer) == 257
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_characters(tmp_path):
    from transformers import AutoTokenizer

    texts = ["Grüße 世界\n", "👩‍👩‍👧 tab\t\r\n  two"]
    tokenizer = train_tokenizer(texts, kind="character")
    assert len(tokenizer) == len(set("".join(texts))) + 2
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer("Gruß?")["input_ids"]) == "Gruß\ufffd".replace("u", "\ufffd")
    assert tokenizer.eos_token_id == tokenizer(END_OF_TEXT)["input_ids"][0]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(texts[0])["input_ids"] == tokenizer(texts[0])["input_ids"]
    assert again.decode(again(texts[1])["input_ids"]) == texts[1]


def test_of_many_characters_the_most_frequent_are_kept():
    tokenizer = train_tokenizer(["aaabbc"], 4, kind="character")
    assert set(tokenizer.get_vocab()) == {END_OF_TEXT, "\ufffd", "a", "b"}


@pytest.fixture(scope="module")
def varied():
    """Text of many different words: Unigram's pieces are parts that several words have."""
    return [load("pydocs")["text"][0][:20_000], "Grüße aus Köln: 日本語 1, 2, 3"]


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_other_learned_kinds_are_the_same_each_time_and_saved(kind, varied, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(varied, 400, kind=kind)
    assert train_tokenizer(iter(varied), 400, kind=kind).backend_tokenizer.to_str() == (
        tokenizer.backend_tokenizer.to_str()
    )
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*HARD, *varied]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert len(tokenizer("the statement and the expression")["input_ids"]) <= 16  # of 32 characters


def test_unigram_loses_nothing_and_wordpiece_has_berts_tokens(varied):
    unigram = train_tokenizer(varied, 400, kind="unigram")
    for text in [*HARD, *varied]:
        assert unigram.decode(unigram(text)["input_ids"]) == text
    wordpiece = train_tokenizer(varied, 400, kind="wordpiece")
    assert wordpiece.convert_ids_to_tokens(wordpiece("Grüße, text \u2603")["input_ids"])[-1] == "[UNK]"
    assert {wordpiece.cls_token, wordpiece.sep_token, wordpiece.mask_token} == {"[CLS]", "[SEP]", "[MASK]"}
    assert wordpiece.decode(wordpiece("the statement  of")["input_ids"]) == "the statement of"
    assert wordpiece("[MASK]")["input_ids"] == [wordpiece.mask_token_id]
    assert not any(token.startswith("##") for token in wordpiece.get_added_vocab())


def test_no_more_text_is_read_than_was_asked_for(capsys):
    texts = ["alpha beta "] * 30 + ["gamma delta "] * 30
    every = train_tokenizer(texts, 300, max_bytes=360)
    assert "one document in 2" in capsys.readouterr().out
    assert "Ġgamma" not in every.get_vocab() and {"alpha", "gamma"} <= set(every.get_vocab())
    first = train_tokenizer(iter(texts), 300, max_bytes=300)
    assert "the first 27 documents" in capsys.readouterr().out
    assert "gamma" not in first.get_vocab()
    with pytest.raises(UserError, match="max_bytes must be"):
        train_tokenizer(texts, max_bytes=0)


def test_a_document_without_a_space_is_no_single_word():
    tokenizer = train_tokenizer(["ab" * 300_000], 300)
    assert tokenizer.decode(tokenizer("abab" * 10)["input_ids"]) == "abab" * 10


@pytest.mark.parametrize(("kind", "size"), [("unigram", 256), ("wordpiece", 5)])
def test_too_small_vocabularies_of_other_kinds(kind, size):
    with pytest.raises(UserError, match="need at least"):
        train_tokenizer(["a b"], size, kind=kind)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([""], kind=kind)
