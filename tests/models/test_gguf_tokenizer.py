"""Tokenizers that come and go through GGUF's metadata."""

import io

import pytest
import sentencepiece
from gguf import GGUFWriter
from jinja2.exceptions import SecurityError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.gguf import read_header
from nbllm.models.gguf.pre_tokenizers import RECIPES
from nbllm.models.gguf.tokenizer import read_tokenizer
from nbllm.models.gguf.tokenizer_writing import write_tokenizer

LINES = [
    "the cat sat on the mat", "", " ", "  two  12  34", "\t\tx = 1\n\n\n  return x", "naïve café e\u0301",
    "日本語のテキスト", "👩‍👩‍👧‍👦🎉", "don't WE'LL", "1234567 ٣٤٥ ½", "a\r\nb",
    "<|end|>the<|end|>", "\x00\ufffd", "x" * 300,
]  # fmt: skip


def train(recipe):
    backend = Tokenizer(models.BPE(ignore_merges=recipe.ignore_merges))
    recipe.apply(backend)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*LINES, "12 the cats, don't 99 naïve"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def write(path, tokenizer, vocab_size=None):
    writer = GGUFWriter(path, "llama")
    write_tokenizer(writer, tokenizer, vocab_size or len(tokenizer))
    return close(writer, path)


def close(writer, path):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_header(path)


@pytest.mark.parametrize("name", RECIPES)
def test_each_way_of_cutting_comes_back(name, tmp_path):
    tokenizer = train(RECIPES[name])
    header = write(tmp_path / "x.gguf", tokenizer, len(tokenizer) + 7)
    assert RECIPES[header.metadata["tokenizer.ggml.pre"]] == RECIPES[name]
    again = read_tokenizer(header)
    assert again.get_vocab() == tokenizer.get_vocab()
    for line in LINES:
        assert again(line)["input_ids"] == tokenizer(line)["input_ids"], line
        composed = tokenizer.backend_tokenizer.normalizer
        assert again.decode(again(line)["input_ids"]) == (composed.normalize_str(line) if composed else line)


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "llama-bpe"])
def test_transformers_cuts_alike(name, tmp_path):
    """Where it knows the name; it does not compose text."""
    header = write(tmp_path / "x.gguf", train(RECIPES[name]))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    ours = read_tokenizer(header)
    for line in LINES:
        if "\u0301" not in line:
            assert ours(line)["input_ids"] == theirs(line)["input_ids"], line


def test_what_is_added_to_a_text(tmp_path):
    for bos, eos in ((True, False), (False, True), (True, True)):
        tokenizer = train(RECIPES["gpt-2"])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|end|>", eos_token="<|end|>",
            add_bos_token=bos, add_eos_token=eos,
        )  # fmt: skip
        again = read_tokenizer(write(tmp_path / "x.gguf", tokenizer))
        assert again("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
        assert again("a", "b")["input_ids"] == tokenizer("a", "b")["input_ids"]
        again.save_pretrained(tmp_path / "saved")
        saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert saved("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]


def test_added_tokens_and_templates_are_kept(tmp_path):
    tokenizer = train(RECIPES["smollm"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    again = read_tokenizer(write(tmp_path / "x.gguf", tokenizer))
    assert again.chat_template == tokenizer.chat_template
    text = "the<think> cat<|end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    ids = again(text)["input_ids"]
    assert again.decode(ids, skip_special_tokens=True) == "the<think> cat"


def test_templates_run_in_the_sandbox(tmp_path):
    tokenizer = train(RECIPES["gpt-2"])
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    hostile = read_tokenizer(write(tmp_path / "x.gguf", tokenizer))
    with pytest.raises(SecurityError):
        hostile.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_tokenizers_that_gguf_cannot_name(tmp_path):
    backend = train(RECIPES["gpt-2"]).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(UserError, match="has no name in GGUF"):
        write(tmp_path / "x.gguf", PreTrainedTokenizerFast(tokenizer_object=backend))
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="byte-level BPE tokenizers only"):
        write(tmp_path / "x.gguf", PreTrainedTokenizerFast(tokenizer_object=words))
    tokenizer = train(RECIPES["gpt-2"])
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    with pytest.raises(UserError, match="'<mask>' takes blanks"):
        write(tmp_path / "x.gguf", tokenizer)


def train_sentencepiece():
    out = io.BytesIO()
    texts = ["the cat sat on the mat", "naïve café", "12 the cats  sat, 99 times", "日本語のテキスト"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=out, vocab_size=340, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def write_sentencepiece(path, model):
    """As llama.cpp's converter writes it: `_create_vocab_sentencepiece` of convert_hf_to_gguf.py."""
    writer = GGUFWriter(path, "llama")
    types = []
    for index in range(model.vocab_size()):
        kind = 2 if model.is_unknown(index) else 3 if model.is_control(index) else 1
        types.append(6 if model.is_byte(index) else kind)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(index) for index in range(model.vocab_size())])
    writer.add_token_scores([model.get_score(index) for index in range(model.vocab_size())])
    writer.add_token_types(types)
    writer.add_unk_token_id(model.unk_id())
    writer.add_bos_token_id(model.bos_id())
    writer.add_eos_token_id(model.eos_id())
    return close(writer, path)


def test_sentencepiece_tokenizers_are_built_from_scores(tmp_path):
    model = train_sentencepiece()
    ours = read_tokenizer(write_sentencepiece(tmp_path / "x.gguf", model))
    for line in LINES:
        if "<|" in line or "\x00" in line:
            continue
        expected = model.encode(line)
        assert ours(line)["input_ids"] == [model.bos_id(), *expected], line
        assert ours.decode(expected) == line
    assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")


def test_a_sentencepiece_token_without_end(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["a", "b" * 100_000])
    header = close(writer, tmp_path / "x.gguf")
    with pytest.raises(WeightsError, match="A token has 100000 characters"):
        read_tokenizer(header)
