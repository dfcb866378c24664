"""Which tokens stand around a document: one rule, followed by packing, scoring, evaluation and generation."""

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.data.document_bounds import document_bounds
from nbllm.evaluation.answering import answer
from nbllm.evaluation.requests import DocumentLikelihood, Likelihood

LETTERS = "abcd"
END = "<|endoftext|>"


def make_tokenizer(specials, **named):
    """Return a tokenizer of letters and some special tokens, the letters first."""
    vocabulary = {token: number for number, token in enumerate([*LETTERS, *specials])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def bounds(specials, **named):
    tokenizer = make_tokenizer(specials, **named)
    found = document_bounds(tokenizer)
    return found.start_token or None, None if found.end is None else tokenizer.convert_ids_to_tokens(
        found.end
    )


@pytest.mark.parametrize(
    ("specials", "named", "expected"),
    [
        ([END], {"bos_token": END, "eos_token": END}, (END, END)),  # GPT-2, and what is trained here
        (["<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>"}, ("<s>", "</s>")),  # Llama 2
        (
            ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],  # Llama 3, its chat model
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            ("<|begin_of_text|>", "<|end_of_text|>"),
        ),
        (
            [END, "<|im_start|>", "<|im_end|>"],  # SmolLM2's chat model
            {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            (END, END),
        ),
        ([END, "<|im_end|>"], {"eos_token": "<|im_end|>"}, (END, END)),  # Qwen2's
        (["<|im_end|>"], {"eos_token": "<|im_end|>"}, ("<|im_end|>", "<|im_end|>")),  # there is no other
        (["</s>"], {"eos_token": "</s>"}, ("</s>", "</s>")),
        (["<s>"], {"bos_token": "<s>"}, ("<s>", None)),
        ([], {}, (None, None)),
    ],
)
def test_the_tokens_around_a_document(specials, named, expected):
    assert bounds(specials, **named) == expected


def bigram_lm(tokenizer, likely):
    """Return a model whose next token is surely `likely[token]`, and 300 nats less likely any other."""
    size = len(tokenizer)
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=1, hidden_size=2 * size, num_heads=1, tie_embeddings=False
    )
    with torch.no_grad():
        for parameter in lm.model.blocks.parameters():
            parameter.zero_()  # a layer adds nothing
        lm.model.embedding.weight.zero_()
        lm.model.embedding.weight[:, :size] = torch.eye(size)
        lm.model.head.weight.zero_()
        for token, following in likely.items():
            one, other = tokenizer.convert_tokens_to_ids([token, following])
            lm.model.head.weight[other, one] = 300 / math.sqrt(2 * size)  # the norm scales a one by that root
    return lm


@pytest.fixture(scope="module")
def contrast():
    """Documents begin with <s>, as in Llama; after </s>, on which nothing was ever trained here, all is wrong."""
    tokenizer = make_tokenizer(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    return bigram_lm(tokenizer, {"<s>": "a", "a": "b", "b": "</s>", "</s>": "d", "d": "c", "c": "c"})


def test_a_text_is_scored_from_what_documents_begin_with(contrast):
    """Scored from the end-of-text token it had 300 nats less."""
    (score,) = contrast.score("ab")
    assert (score.log_probability, score.num_tokens) == (pytest.approx(0, abs=1e-6), 2)
    (document,) = answer(contrast, [DocumentLikelihood("ab")])
    assert (document.log_probability, document.num_tokens) == (pytest.approx(0, abs=1e-6), 3)  # its end, too
    (beginning,) = answer(contrast, [Likelihood("", "ab")])
    assert beginning.log_probability == pytest.approx(0, abs=1e-6)


def test_a_text_without_a_prompt_begins_so_too(contrast):
    made = contrast.generate("", temperature=0, max_new_tokens=9)
    assert (str(made), made.stopped_by) == ("ab", "eos")


def test_what_ended_documents_ends_a_chat_models_texts_and_answers():
    tokenizer = make_tokenizer(
        [END, "<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    lm = bigram_lm(tokenizer, {END: "a", "a": "b", "b": END})
    assert str(lm.generate("", temperature=0, max_new_tokens=9)) == "ab"
    made = lm.chat("a", temperature=0, max_new_tokens=9).result
    assert (str(made), made.stopped_by) == ("b", "eos")


def test_the_report_says_which_token_it_is(contrast):
    report = nb.evaluate(contrast, ["perplexity"], data=["ab", "ab"], progress=False)
    assert report.metric("bits per byte").value == pytest.approx(0, abs=1e-6)
    notes = [section.note for section in report.sections if section.title.startswith("Prediction")]
    assert "The first is predicted from <s> (the tokenizer's beginning-of-text token)." in notes[0]


def test_packed_documents_begin_as_scored_ones(contrast):
    store = nb.data.pack(["ab", "ba"], contrast.tokenizer)
    ids = contrast.tokenizer.convert_tokens_to_ids
    assert store.read().tolist() == ids(["<s>", "a", "b", "</s>", "<s>", "b", "a", "</s>"])
    assert [contrast.tokenizer.decode(store.document(i)) for i in range(2)] == ["ab", "ba"]


def test_a_conversation_begins_as_its_template_says(contrast):
    tokenizer = make_tokenizer(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}{{ eos_token }}"
    )
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    store = nb.data.pack(nb.data.load([{"messages": chat}]), tokenizer)
    assert store.read().tolist() == tokenizer.convert_tokens_to_ids(["<s>", "a", "b", "</s>"])


def test_one_token_stands_between_documents_where_it_begins_and_ends_them():
    tokenizer = make_tokenizer(
        [END, "<|im_start|>", "<|im_end|>"], bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    store = nb.data.pack(["ab", "ba"], tokenizer)
    assert store.read().tolist() == tokenizer.convert_tokens_to_ids(["a", "b", END, "b", "a", END])


def test_another_token_can_be_named_and_is_saved(contrast, tmp_path):
    lm = nb.LM(contrast.model, make_tokenizer(["<s>", "</s>"], bos_token="<s>", eos_token="</s>"))
    assert lm.document_start == "<s>"
    lm.document_start = "</s>"
    assert lm.score("ab")[0].log_probability == pytest.approx(-300, abs=1)
    lm.tokenizer.save_pretrained(tmp_path)
    assert document_bounds(AutoTokenizer.from_pretrained(tmp_path)).start_token == "</s>"
    with pytest.raises(UserError, match="no token '<bos>'"):
        lm.document_start = "<bos>"
    lm.document_start = None
    assert lm.document_start == "<s>"


@pytest.mark.slow
def test_a_chat_model_finds_a_sentence_likelier_after_what_separated_its_documents(smollm2):
    """Measured: -42.8 nats, and -57.4 after the token that ends a turn."""
    lm = nb.load("smollm2-135m-instruct")
    assert lm.document_start == END
    sentence = "The capital of France is Paris, which lies on the river Seine."
    (after_separator,) = lm.score(sentence)
    lm.document_start = "<|im_end|>"
    (after_turn,) = lm.score(sentence)
    assert after_separator.log_probability > after_turn.log_probability + 5


def test_a_tokenizer_that_only_has_a_separator_ends_documents_with_it():
    """BERT's."""
    found = document_bounds(make_tokenizer(["[SEP]"], sep_token="[SEP]"))
    assert (found.start, found.end, found.start_token) == (4, 4, "[SEP]")
