"""One rule for packing and scoring: a document is text, and its tokens are those of the whole text."""

import random

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import nbllm as nb
from nbllm.core.errors import DataError
from nbllm.data import END_OF_TEXT, encoding as module, load, pack, train_tokenizer
from nbllm.data.encoding import DocumentEncoder, added_before, encode_text
from nbllm.evaluation.answering import answer
from nbllm.evaluation.requests import DocumentLikelihood

CHAT = [{"role": "user", "content": f"Hi {END_OF_TEXT}?"}, {"role": "assistant", "content": "Hello."}]
TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(load("pydocs"), 600)


@pytest.fixture(scope="module")
def lm(tokenizer):
    return nb.LM.new("gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=16, num_heads=2, max_positions=64)


def test_a_spelled_control_token_is_plain_when_packed_and_when_scored(lm, tokenizer):
    text = f"a {END_OF_TEXT} b"
    packed = pack([text, "other"], tokenizer).document(0).tolist()
    assert tokenizer.eos_token_id not in packed
    assert tokenizer.decode(packed) == text
    assert encode_text(tokenizer, text) == packed
    assert lm.score(text)[0].num_tokens == len(packed)
    (measured,) = answer(lm, [DocumentLikelihood(text)])
    assert measured.num_tokens == len(packed) + 1  # and the end
    assert tokenizer(text)["input_ids"] != packed  # nor did encoding change the tokenizer's own ways


def test_a_tokenizer_that_grew_is_encoded_with_anew(tokenizer):
    from copy import deepcopy

    grown = deepcopy(tokenizer)
    before = encode_text(grown, "xyzzy plugh")
    grown.add_tokens(["xyzzy"])
    assert len(encode_text(grown, "xyzzy plugh")) < len(before)


def regex_tokenizer(base, *parts):
    backend = Tokenizer.from_str(base.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT)


# Llama 3's and Qwen2's; published with their models.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize("kind", ["gpt2", "digits", "llama3", "metaspace", "lowercase", "character"])
def test_pieces_have_the_tokens_of_the_whole(tokenizer, monkeypatch, kind):
    """For tokenizers that can be cut, and for those that cannot: then nothing is cut."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made = {
        "gpt2": lambda: tokenizer,
        "digits": lambda: regex_tokenizer(
            tokenizer, pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        ),
        "llama3": lambda: regex_tokenizer(tokenizer, pre_tokenizers.Split(Regex(CL100K), "isolated"), level),
        "metaspace": lambda: regex_tokenizer(tokenizer, pre_tokenizers.Metaspace(), level),
        "lowercase": lambda: lowercase(tokenizer),
        "character": lambda: train_tokenizer(load("pydocs"), kind="character"),
    }[kind]()
    rng = random.Random(0)
    parts = [
        "word",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "12345",
        "!?",
        "'s",
        "Grüße",
        "世界",
        END_OF_TEXT,
        "A",
    ]
    texts = ["".join(rng.choices(parts, k=400)) for _ in range(20)] + ["\n" * 3000, " \n" * 1000]
    encoder = DocumentEncoder(made)
    whole = [np.array(encoder._backend.encode(text, add_special_tokens=False).ids) for text in texts]
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(module, "MARGIN", 100)
    for text, expected in zip(texts, whole, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], expected)
    assert (len(list(encoder._pieces(texts[0]))) > 3) == (kind not in ("metaspace", "lowercase"))


def lowercase(base):
    made = regex_tokenizer(base, pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    return made


def test_nothing_is_added_cut_or_padded(tokenizer):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.eos_token_id)]
    )
    other(["one", "a longer text"], truncation=True, max_length=3, padding=True)
    assert encode_text(other, "a longer text " * 9) == encode_text(tokenizer, "a longer text " * 9)


def test_what_a_tokenizer_puts_before_a_text(tokenizer):
    from copy import deepcopy

    begun = deepcopy(tokenizer)
    begun.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.bos_token_id)]
    )
    assert (added_before(tokenizer), added_before(begun)) == ([], [tokenizer.bos_token_id])


def test_bits_per_byte_are_of_the_tokens_that_are_packed(lm, tokenizer):
    """A control token that the text spells is plain there too: read as one, this text has 11 tokens fewer."""
    text = f"a {END_OF_TEXT} b"
    report = nb.evaluate(lm, ["perplexity"], data=[text], progress=False)
    (num_tokens,) = report.rows("perplexity").columns["num_tokens"]
    assert num_tokens == pack([text], tokenizer).num_tokens
    assert num_tokens > len(tokenizer(text)["input_ids"]) + 3


def test_a_tokenizer_in_python_follows_the_same_rule():
    from transformers import ByT5Tokenizer

    slow = ByT5Tokenizer()
    ids = encode_text(slow, "a </s>")
    assert slow.eos_token_id not in ids
    assert slow.decode(ids) == "a </s>"


def test_conversations_are_packed_by_the_chat_template(tokenizer):
    from copy import deepcopy

    chatty = deepcopy(tokenizer)
    chatty.add_special_tokens({"additional_special_tokens": ["<|begin|>", "<|end|>"]})
    chatty.chat_template = TEMPLATE
    store = pack(load([{"messages": CHAT}, {"messages": CHAT[:1]}]), chatty)
    ids = store.document(0).tolist()
    assert chatty.decode(ids) == chatty.apply_chat_template(CHAT, tokenize=False)
    begin, end = chatty.convert_tokens_to_ids(["<|begin|>", "<|end|>"])
    assert ids.count(begin) == ids.count(end) == 2
    assert chatty.eos_token_id not in ids  # the message spells it: that is text
    assert store.record.num_conversations == 2
    chatty.chat_template = TEMPLATE.replace("<|begin|>", "")
    assert pack(load([{"messages": CHAT}, {"messages": CHAT[:1]}]), chatty).fingerprint != store.fingerprint


def test_without_a_template_the_roles_are_plain_words_and_that_is_said(tokenizer, capsys):
    store = pack(load([{"messages": CHAT}]), tokenizer)
    assert tokenizer.decode(store.document(0)) == f"User: Hi {END_OF_TEXT}?\nAssistant: Hello.\n"
    assert "no chat template: of 1 conversations the roles are plain words" in capsys.readouterr().out


def test_a_template_that_cannot_render_names_the_conversation(tokenizer):
    from copy import deepcopy

    chatty = deepcopy(tokenizer)
    chatty.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(DataError, match="no system message") as caught:
        pack(load([{"messages": CHAT}]), chatty)
    assert "Hi " in str(caught.value)


def test_an_evaluation_refuses_what_it_would_measure_wrongly(tokenizer, lm):
    from copy import deepcopy

    chatty = deepcopy(tokenizer)
    chatty.chat_template = TEMPLATE
    store = pack(load([{"messages": CHAT}]), chatty)
    with pytest.raises(ValueError, match="conversations that a chat template rendered"):
        nb.evaluate(lm, ["perplexity"], data=store)


def test_progress_is_told_while_one_long_document_is_packed(tokenizer, monkeypatch, tmp_path):
    from nbllm.data import packing

    told = []

    class Bar:
        def __init__(self, label, total, unit):
            told.append((label, total, unit))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, amount):
            told.append(amount)

    monkeypatch.setattr(packing, "progress", Bar)
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 10_000)
    monkeypatch.setattr(module, "GROUP_CHARACTERS", 20_000)
    text = "\n".join(f"Zeile {n}: größer" for n in range(10_000))
    store = pack([text], tokenizer, folder=tmp_path)
    assert told[0] == ("encoding the text", len(text.encode()), "B")
    assert len(told) > 8
    assert sum(told[1:]) == pytest.approx(len(text.encode()))
    assert tokenizer.decode(store.document(0)) == text


def test_an_interruption_leaves_nothing_behind(tokenizer, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DocumentEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(["some text"], tokenizer, folder=tmp_path)
    assert [entry.suffix for entry in (tmp_path / "tokens").iterdir()] == [".lock"]
