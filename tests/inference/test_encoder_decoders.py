"""Generation with encoder-decoders against transformers' `generate`, for the same weights; and what a person asks."""

import json

import pytest
import torch
import transformers

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.evaluation.answering import answer
from nbllm.inference import SamplingConfig, generate_ids
from nbllm.inference.decoder_tokens import DecoderTokens
from nbllm.models.loading import load_model

COUNT, START, END = 14, 2, 3
# Flat distributions, in which the end token comes up in some texts.
SHAPE = dict(
    vocab_size=60, d_model=32, pad_token_id=0, eos_token_id=END, bos_token_id=1, decoder_start_token_id=START
)
T5 = dict(d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)
BART = dict(
    encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
    decoder_ffn_dim=64, max_position_embeddings=64, forced_eos_token_id=None, dropout=0.0,
)  # fmt: skip


def make(kind):
    if kind == "t5":
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**SHAPE, **T5))
    else:
        theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**SHAPE, **BART))
    generator = torch.Generator().manual_seed({"t5": 3, "bart": 1}[kind])
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3, generator=generator)
    return theirs.eval()


@pytest.fixture(scope="module", params=["t5", "bart"])
def pair(request, tmp_path_factory):
    theirs = make(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 60, (n,), generator=generator).tolist() for n in (1, 5, 17, 9)]


def theirs_of(model, prompts, **settings):
    """Return the tokens that transformers generates from a right-padded batch, without the start and end token."""
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    given = {"max_new_tokens": COUNT, "do_sample": False, **settings}
    out = model.generate(ids, attention_mask=mask, **given)[:, 1:].tolist()
    return [row[: row.index(END)] if END in row else row for row in out]


def ours_of(model, prompts, *, tokens=(), **settings):
    config = SamplingConfig(**{"max_new_tokens": COUNT, "temperature": 0, **settings})
    decoder_tokens = DecoderTokens(decoder_start_token_id=START, **dict(tokens))
    return generate_ids(model, prompts, config, eos_id=END, decoder_tokens=decoder_tokens)


CASES = {
    "greedy": {},
    "one at a time": {"batch_size": 1},
    "repetition": {"repetition_penalty": 1.5},
    "n-grams": {"no_repeat_ngram_size": 2},
    "not before": {"min_new_tokens": 9},
    "forced first": {"forced_bos_token_id": 7},
    "forced last": {"forced_eos_token_id": END, "max_new_tokens": 6},
    "beams": {"num_beams": 4},
    "summary": {
        "num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "early_stopping": True,
        "forced_bos_token_id": 7, "forced_eos_token_id": END,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(CASES))
def test_it_equals_transformers_token_for_token(pair, prompts, case):
    theirs, ours = pair
    settings = dict(CASES[case])
    tokens = {name: settings.pop(name) for name in list(settings) if name.startswith("forced")}
    expected = theirs_of(
        theirs, prompts, **{k: v for k, v in settings.items() if k != "batch_size"}, **tokens
    )
    beams = {"temperature": 1.0} if "num_beams" in settings else {}
    assert ours_of(ours, prompts, tokens=tokens, **settings, **beams) == expected
    if case == "forced last":
        assert all(len(row) <= 5 for row in expected)


def test_the_cases_are_told_apart(pair, prompts):
    """Every setting changes some text, so that none could be left out."""
    theirs, _ = pair
    plain = theirs_of(theirs, prompts)
    changed = (
        ("repetition_penalty", 1.5),
        ("no_repeat_ngram_size", 2),
        ("min_new_tokens", 9),
        ("forced_bos_token_id", 7),
    )
    found = [theirs_of(theirs, prompts, **{name: value}) != plain for name, value in changed]
    assert all(found)


def test_the_source_is_read_once_and_its_keys_are_computed_once(pair, prompts):
    _, ours = pair
    calls = {"encoder": 0, "key": 0}

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    hooks = [
        ours.encoder.register_forward_hook(count("encoder")),
        ours.decoder.blocks[0].cross_attention.key.register_forward_hook(count("key")),
    ]
    try:
        made = ours_of(ours, prompts[2:3], min_new_tokens=COUNT)
        assert len(made[0]) == COUNT and calls == {"encoder": 1, "key": 1}
        ours_of(ours, prompts, num_beams=3, temperature=1.0)
        assert calls == {"encoder": 2, "key": 2}
    finally:
        for hook in hooks:
            hook.remove()


def test_a_text_is_drawn_alike_alone_and_in_a_batch(pair, prompts):
    _, ours = pair
    settings = {"temperature": 0.9, "top_p": 0.9, "seed": 5}
    together = ours_of(ours, prompts, **settings)
    assert together == [ours_of(ours, [prompt], **settings)[0] for prompt in prompts]
    assert together != ours_of(ours, prompts, **{**settings, "seed": 6})


def test_a_text_that_is_longer_than_the_positions(pair, prompts):
    """BART's are learned, and so many; T5's encoder reads texts longer than those that it was trained on."""
    theirs, ours = pair
    long = [[5, 9] * 300]
    if ours.config.positions == "relative":
        assert ours.config.max_positions < 600
        assert ours_of(ours, long) == theirs_of(theirs, long)
    else:
        with pytest.raises(UserError, match="has 600 tokens; the model has positions for 64"):
            ours_of(ours, long, overflow="slide")
        made = ours_of(ours, prompts[:1], max_new_tokens=90, min_new_tokens=90)
        assert len(made[0]) == 64  # the last one is not read


# ---- what a person holds


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(5)), vocab_size=300)


@pytest.fixture(scope="module", params=["t5", "bart"])
def lm(request, tokenizer):
    shape = dict(num_layers=2, hidden_size=32, num_heads=4, max_positions=64, initializer_range=0.3)
    return nb.LM.new(request.param, tokenizer=tokenizer, seed=1, **shape)


def test_lm_generate_writes_streams_and_saves(lm, tmp_path):
    settings = {"max_new_tokens": 9, "temperature": 0}
    one, two = lm.generate(["def add(a, b):", "x"], **settings)
    assert one == lm.generate("def add(a, b):", **settings) and one.prompt == "def add(a, b):"
    assert "def add(a, b):</span>\n<b>" in one._repr_html_()
    pieces = []
    assert lm.generate("x", stream=pieces.append, **settings) == two == "".join(pieces)
    opened = nb.load(lm.save(tmp_path / "model"))
    assert opened.decoder_tokens == lm.decoder_tokens
    assert opened.generate("x", **settings) == two
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    ids = lm.tokenizer("x")["input_ids"] + [lm.tokenizer.eos_token_id]
    found = theirs.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False)[0, 1:].tolist()
    assert found[: len(two.tokens)] == two.tokens
    assert lm.copy().generate("x", **settings) == two


def test_what_it_cannot_do_is_refused_with_the_reason(lm):
    with pytest.raises(UserError, match="does not continue a text: it is an encoder-decoder"):
        lm.chat("hello")
    for verb, ask in (("score", lm.score), ("embed", lm.embed), ("fill", lm.fill)):
        with pytest.raises(UserError, match=f"cannot {verb}: it is an encoder-decoder"):
            ask("hello")
    with pytest.raises(UserError, match="GGUF is not written for the family"):
        lm.save("model.gguf")


def test_a_task_that_asks_for_texts_is_answered(lm):
    from nbllm.evaluation.requests import Generate

    sampling = SamplingConfig(max_new_tokens=5, temperature=0)
    made = answer(lm, [Generate("x", sampling)], batch_tokens=64)
    assert made[0] == lm.generate("x", max_new_tokens=5, temperature=0)


def test_a_task_that_asks_which_text_is_likelier_is_answered(lm):
    """The encoder reads the context, shortened where it is too long, and the decoder's text is the continuation."""
    from nbllm.evaluation.requests import DocumentLikelihood, Likelihood

    contexts = ["def add(a, b):", "def add(a, b):", " ".join(["word"] * 100)]
    continuations = [" return a + b", " pass", " x"]
    requests = [Likelihood(*each) for each in zip(contexts, continuations, strict=True)]
    found = answer(lm, requests)
    tokenizer, start = lm.tokenizer, lm.decoder_tokens.decoder_start_token_id
    for text, continuation, score in zip(contexts, continuations, found, strict=True):
        source = [*tokenizer(text)["input_ids"][-63:], tokenizer.eos_token_id]
        target = tokenizer(continuation)["input_ids"]
        with torch.no_grad():
            logits = lm.model(torch.tensor([source]), torch.tensor([[start, *target[:-1]]]))[0]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum()
        assert score.num_tokens == len(target)
        assert score.log_probability == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(UserError, match="cannot score: it is an encoder-decoder"):
        answer(lm, [DocumentLikelihood("hello")])


def test_its_vocabulary_can_grow(lm):
    other = lm.copy()
    size = other.config.vocab_size
    other.resize(size + 5)
    assert other.model(torch.tensor([[5]]), torch.tensor([[0, size + 4]])).shape[-1] == size + 5
    old = lm.model(torch.tensor([[5, 9]]), torch.tensor([[0, 7]]))
    new = other.model(torch.tensor([[5, 9]]), torch.tensor([[0, 7]]))
    torch.testing.assert_close(new[..., :size], old)


def save_with(lm, folder, **generation):
    lm.save(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **generation}))
    return folder


def test_what_its_files_state_is_kept_and_used(lm, tmp_path):
    """As of bart-large-cnn: the start, forced tokens and the search; a person comes first."""
    stated = {
        "decoder_start_token_id": 9, "forced_bos_token_id": 11, "forced_eos_token_id": 0, "num_beams": 3,
        "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2, "max_length": 12, "min_length": 6,
    }  # fmt: skip
    opened = nb.load(save_with(lm, tmp_path / "stated", **stated))
    assert opened.decoder_tokens == DecoderTokens(
        decoder_start_token_id=9, forced_bos_token_id=11, forced_eos_token_id=0
    )
    made = opened.generate("def add(a, b):")
    assert made.score is not None and made.tokens[0] == 11 and 5 <= len(made.tokens) <= 10
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "stated")
    ids = torch.tensor([lm.tokenizer("def add(a, b):")["input_ids"] + [0]])
    expected = theirs.generate(ids)[0, 1:].tolist()
    assert made.tokens == (expected[: expected.index(0)] if 0 in expected else expected)
    assert len(opened.generate("x", max_new_tokens=3).tokens) <= 2  # the third is the end token
    assert opened.generate("x", temperature=0).score is None
    again = nb.load(opened.save(tmp_path / "again"))
    assert again.decoder_tokens == opened.decoder_tokens and again.sampling == opened.sampling
    assert again.generate("def add(a, b):") == made


def test_tokens_that_are_none_are_warned_of(lm, tmp_path):
    folder = save_with(lm, tmp_path / "model", decoder_start_token_id=12345)
    with pytest.warns(UserWarning, match="decoder_start_token_id in .* is left out: 12345 is no token"):
        assert nb.load(folder).decoder_tokens == lm.decoder_tokens


def test_settings_that_there_are_not_are_warned_of(lm, tmp_path):
    folder = save_with(
        lm, tmp_path / "model", encoder_no_repeat_ngram_size=3, bad_words_ids=[[4]], suppress_tokens=[]
    )
    with pytest.warns(UserWarning, match="bad_words_ids, encoder_no_repeat_ngram_size is left out"):
        nb.load(folder)


def test_families_begin_with_their_own_token(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"pad_token": "<pad>"})
    pad, end = other.pad_token_id, other.eos_token_id
    assert pad != end
    shape = dict(num_layers=1, hidden_size=16, num_heads=2)
    for family, token in (("t5", pad), ("bart", end)):
        assert nb.LM.new(family, tokenizer=other, **shape).decoder_tokens.decoder_start_token_id == token
    other.pad_token = other.eos_token = None
    with pytest.raises(UserError, match="no padding token and no end token"):
        nb.LM.new("t5", tokenizer=other, **shape).generate("x")
    assert nb.LM.new("gpt2", tokenizer=other, **shape).decoder_tokens is None
