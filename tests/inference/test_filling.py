"""What an encoder expects in the place of masks, against transformers' own pipeline."""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import nbllm as nb
from nbllm.core.errors import UserError

TEXT = "the dog barks at the cat and the bird, then sleeps"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def bert_tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        [TEXT] * 3, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    )
    return finish(backend, special, ("[CLS]", 2), ("[SEP]", 3))


def roberta_tokenizer():
    from tokenizers import AddedToken

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT] * 3,
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )  # fmt: skip
    return finish(
        backend, ["<pad>", "<unk>", "<s>", "</s>", AddedToken("<mask>", lstrip=True, special=True)], ("<s>", 0),
        ("</s>", 2),
    )  # fmt: skip


def finish(backend, special, begin, end):
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, special, strict=True)))


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request, tmp_path_factory):
    """A tiny model of transformers, with its tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = {"bert": bert_tokenizer, "roberta": roberta_tokenizer}[request.param]()
    kind = {"bert": "Bert", "roberta": "Roberta"}[request.param]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer) + 7, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40, initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm(folder):
    return nb.load(folder)


def masked(lm, text):
    return text.replace("MASK", lm.tokenizer.mask_token)


@pytest.mark.parametrize("text", ["the MASK barks", "MASK", "the MASK barks at the MASK.", "the catMASKs"])
def test_the_candidates_are_transformers_own(lm, folder, text):
    text = masked(lm, text)
    fill = lm.fill(text, top=4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probabilities = model(ids).logits[ids == tokenizer.mask_token_id].softmax(-1)[:, : len(tokenizer)]
    expected = probabilities.topk(4)
    assert len(fill) == len(probabilities)
    assert [[each.token_id for each in mask] for mask in fill] == expected.indices.tolist()
    found = torch.tensor([[each.probability for each in mask] for mask in fill])
    torch.testing.assert_close(found, expected.values, atol=1e-5, rtol=0)


def test_a_candidate_stands_in_the_text(lm):
    fill = lm.fill(masked(lm, "the MASK barks at MASK"), top=len(lm.tokenizer))
    dog = next(each for each in fill[0] if each.token == "dog")
    assert dog.text == masked(lm, "the dog barks at MASK")
    assert next(each for each in fill[1] if each.token == "cat").text == masked(lm, "the MASK barks at cat")


def test_it_is_shown_as_a_table_and_hostile_text_is_escaped(lm):
    hostile = "<script>alert(1)</script>"
    fill = lm.fill(masked(lm, f"{hostile} \x1b[31m MASK"), top=2)
    html, text = fill._repr_html_(), repr(fill)
    assert "<script" not in html and "&lt;script&gt;" in html and "\x1b" not in html + text
    assert "%" in text and hostile in text and text.count("\n") == 2


def test_control_tokens_that_the_text_spells_are_plain_text(lm):
    end = lm.tokenizer.sep_token
    once = lm.fill(masked(lm, "the MASK"))
    assert lm.fill(masked(lm, f"the MASK{end}"))[0][0].probability != once[0][0].probability
    assert end in lm.fill(masked(lm, f"the MASK{end}"))[0][0].text


@pytest.mark.parametrize(
    ("text", "top", "message"),
    [
        ("no mask", 5, "The text has no mask: 'no mask'"),
        ("MASK " + "the " * 200, 5, "tokens; this model reads"),
        ("MASK", 0, "top must be a whole number from 1"),
        ("MASK", True, "top must be a whole number from 1"),
        ("MASK", 10**6, "top must be a whole number from 1"),
    ],
)
def test_what_cannot_be_filled_is_refused(lm, text, top, message):
    with pytest.raises(UserError, match=message):
        lm.fill(masked(lm, text), top=top)


def test_a_tokenizer_without_a_mask_and_a_model_that_fills_none_are_refused():
    tokenizer = nb.data.train_tokenizer(["some text"], kind="byte")
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
    with pytest.raises(UserError, match="no mask token"):
        nb.LM.new("bert", tokenizer=tokenizer, **shape).fill("a [MASK]")
    with pytest.raises(UserError, match="cannot fill: it is a causal decoder"):
        nb.LM.new("gpt2", tokenizer=tokenizer, **shape).fill("a [MASK]")
