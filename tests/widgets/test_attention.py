"""The attention picture's page, what it refuses, and what is left of it without a browser."""

import copy
import html.parser
import json
import re
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import nbllm.widgets.attention as module
from nbllm.core.errors import UserError
from nbllm.lm import LM
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder
from nbllm.models.encoder import Encoder
from nbllm.widgets.attention import AttentionPicture, attention

HOSTILE = [
    "</script><script>hit()</script>",
    "<img src=x onerror=hit()>",
    "a\u202eb",
    '"attn": []',
    "PYTHON_PARAMS",
]


@pytest.fixture(scope="module")
def lm():
    alphabet = {sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(alphabet, []))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    shape = ModelConfig(
        family="gpt2", vocab_size=300, hidden_size=32, num_layers=3, num_heads=4, max_positions=512,
        initializer_range=0.4,
    )  # fmt: skip
    return LM(Decoder(shape, seed=1), tokenizer)


def uniform(tokens, **changes):
    weights = torch.ones(1, 1, len(tokens), len(tokens)).tril()
    weights /= weights.sum(-1, keepdim=True)
    return AttentionPicture(weights, tokens, **{"layers": [0], "heads": [0], "view": "head", **changes})


def parameters(picture):
    """What bertviz's script is given, read back from the page."""
    return json.loads(re.search(r"const params = (\{.*?\}); // HACK", picture.document)[1])


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("view", ["head", "model"])
def test_the_page_holds_the_weights_of_what_was_asked(lm, view):
    picture = attention(lm, "a small cat", view=view, layers=[2, 0], heads=[3, 1])
    given = parameters(picture)
    (data,) = given["attention"]
    assert data["left_text"] == data["right_text"] == ["a", "␣", *"small", "␣", *"cat"]
    assert (given["include_layers"], given["include_heads"], given["layer"]) == ([2, 0], [3, 1], 2)
    for shown, expected in zip(data["attn"], picture.weights, strict=True):
        for head, weights in zip(shown, expected, strict=True):
            for query, row in enumerate(head):
                assert len(row) == (11 if view == "head" else query + 1)
                torch.testing.assert_close(
                    torch.tensor(row).float(), weights[query, : len(row)], atol=6e-4, rtol=0
                )
    everything = attention(lm, "a small cat")
    assert torch.equal(picture.weights, everything.weights[[2, 0]][:, [3, 1]])


def test_the_page_asks_nothing_of_the_network_and_obeys_no_text():
    document = uniform(HOSTILE).document
    page = Elements(document)
    assert page.tags.count("script") == 4 and "img" not in page.tags
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    assert "default-src 'none'" in dict(page.attributes)["content"]
    (data,) = parameters(uniform(HOSTILE))["attention"]
    assert data["left_text"] == [token.replace("\u202e", "\ufffd") for token in HOSTILE]
    assert len(data["attn"][0][0]) == len(HOSTILE)


def test_the_cell_shows_a_shut_off_frame_and_the_strongest_pairs(lm):
    weights = torch.eye(5)[None, None].repeat(2, 2, 1, 1)
    weights[1, 0, 4, 1] = 0.75
    weights[0, 1, 3, 2] = 0.5
    picture = AttentionPicture(weights, HOSTILE, layers=[4, 7], heads=[2, 5], view="model")
    shown = Elements(picture._repr_html_())
    attributes = dict(shown.attributes)
    assert shown.tags.count("iframe") == 1 and not {"script", "img"} & set(shown.tags)
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == picture.document
    table = "|".join(shown.text)
    assert "7|2|4: PYTHON_PARAMS|1: <img src=x onerror=hit()>|0.75" in table
    assert table.index("0.75") < table.index("0.50")
    assert "\u202e" not in picture._repr_html_()


def test_the_labels_are_the_tokens_that_the_weights_are_of(lm):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(lm.tokenizer.backend_tokenizer.to_str()), bos_token="<s>"
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    beginning = attention(LM(lm.model, tokenizer), "cat")
    assert beginning.tokens == ["<s>", *"cat"]
    assert beginning.weights.shape[-2:] == (4, 4)
    assert attention(lm, "cat").tokens == [*"cat"]
    assert attention(LM(lm.model, tokenizer), "<s>cat").tokens == beginning.tokens  # one, not two


@pytest.mark.parametrize("view", ["head", "model"])
def test_an_encoder_shows_both_directions(lm, view):
    shape = ModelConfig(
        family="bert", network="encoder", vocab_size=300, hidden_size=32, num_layers=2, num_heads=4,
        max_positions=512, initializer_range=0.4,
    )  # fmt: skip
    picture = attention(LM(Encoder(shape, seed=1), lm.tokenizer), "a small cat", view=view)
    (data,) = parameters(picture)["attention"]
    for head in (head for layer in data["attn"] for head in layer):
        assert all(len(row) == 11 and sum(row) == pytest.approx(1, abs=0.01) for row in head)
    _, estimate = module._Cost(2, 4, view, False).of(11, 11)
    actual = len(picture._weights_as_json())
    assert actual - 1000 < estimate < 2 * actual
    weights = torch.eye(3)[None, None].clone()
    weights[0, 0, 0] = torch.tensor([0.1, 0.2, 0.7])  # to a later token
    later = AttentionPicture(weights, ["a", "b", "c"], layers=[0], heads=[0], view=view)
    assert "0: a|2: c|0.7" in "|".join(Elements(later._repr_html_()).text)


@pytest.mark.parametrize("view", ["head", "model"])
def test_an_encoder_decoder_shows_what_is_written_beside_what_is_read(lm, view):
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>"})
    pair = LM.new("t5", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=4, max_positions=64)
    picture = attention(pair, "a cat", decoder_text="<pad>b", view=view)
    (data,) = parameters(picture)["attention"]
    assert data["right_text"] == ["a", "␣", *"cat", "</s>"]
    assert data["left_text"] == ["<pad>", "<pad>", "b"]  # the start token, then a text that spells one
    assert all(len(row) == 6 for layer in data["attn"] for head in layer for row in head)
    assert repr(picture).startswith("<Cross-attention: layers 0, 1; heads 0 to 3")
    written = attention(pair, "a cat", decoder_text="b", part="decoder", view=view)
    assert written.tokens == written.key_tokens == ["<pad>", "b"] and written.causal
    assert attention(pair, "a cat", view=view).tokens == data["right_text"]
    with pytest.raises(UserError, match="There is no part 'crosss'"):
        attention(pair, "a cat", part="crosss")


def test_one_token_is_a_picture_too(lm):
    assert "attends to itself" in attention(lm, "a")._repr_html_()


def test_its_text_says_what_it_is(lm):
    text = repr(attention(lm, "cat", layers=1, heads=[0, 2], view="model"))
    assert re.fullmatch(r"<Attention: layer 1; heads 0, 2; 3 tokens; model view of 3\d\d kB>", text)
    assert repr(attention(lm, "cat")).startswith(
        "<Attention: layers 0 to 2; heads 0 to 3; 3 tokens; head view"
    )


def test_tokens_are_shown_so_that_white_space_is_seen_and_long_ones_fit(lm):
    assert attention(lm, "a\n\t").tokens == ["a", "↵", "⇥"]
    assert attention(lm, "é").tokens == ["\ufffd", "\ufffd"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(lm.tokenizer.backend_tokenizer.to_str())
    )
    tokenizer.add_tokens(["internationalization"])
    assert attention(LM(lm.model, tokenizer), "internationalization").tokens == ["international…"]


@pytest.mark.parametrize(
    ("view", "most"), [("head", 193), ("model", 157)]
)  # 4 heads: sqrt(150,000 / 4); 3 layers: T (T + 1) / 2 = 150,000 / 12
def test_what_would_freeze_the_browser_is_refused_before_it_is_computed(lm, view, most, monkeypatch):
    attention(lm, [1] * most, view=view)
    monkeypatch.setattr(module, "attention_weights", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(UserError, match=rf"3 x 4 heads and {most + 1} tokens") as caught:
        attention(lm, [1] * (most + 1), view=view)
    assert f"shorten the text to {most} tokens" in str(caught.value)
    assert re.search(r"draw 15\d,\d\d\d lines", str(caught.value))


def test_a_page_of_too_many_bytes_is_refused(lm, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    with pytest.raises(UserError, match=r"hold 11\.2 kB"):
        attention(lm, [1] * 15)
    attention(lm, [1] * 15, layers=[0])


@pytest.mark.parametrize("view", ["head", "model"])
def test_the_estimate_is_near_the_truth_and_not_below_it(lm, view):
    picture = attention(
        lm, "the estimate of the size of the page is made before anything is computed", view=view
    )
    _, estimate = module._Cost(3, 4, view, True).of(len(picture.tokens), len(picture.tokens))
    actual = len(picture._weights_as_json())
    assert actual - 1000 < estimate < 2 * actual  # brackets are not counted


def test_an_unknown_view_is_refused(lm):
    with pytest.raises(UserError, match=r"(?s)no view 'modell'.*'model'"):
        attention(lm, "cat", view="modell")


def test_a_model_that_diverged_is_named_as_such(lm):
    broken = LM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        broken.model.embedding.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        attention(broken, "cat")


def test_a_missing_package_is_named(lm, monkeypatch):
    module._packaged.cache_clear()
    monkeypatch.setattr(module, "_D3", ("mpld3", "mpld3/js/d3.v9.js"))
    with pytest.raises(UserError, match=r"(?s)d3\.v9\.js of the package mpld3.*pip install"):
        attention(lm, "cat")
    monkeypatch.setattr(module, "_D3", ("no-such-package", "d3.js"))
    with pytest.raises(UserError, match="no-such-package"):
        attention(lm, "cat")


def test_the_packages_that_bring_the_scripts_are_not_imported():
    code = (
        "import sys, torch; from nbllm.widgets.attention import AttentionPicture\n"
        "AttentionPicture(torch.ones(1, 1, 1, 1), ['a'], layers=[0], heads=[0], view='head')._repr_html_()\n"
        "print([name for name in ('bertviz', 'mpld3', 'matplotlib', 'IPython') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
