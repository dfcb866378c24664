"""Beam search against transformers' `generate` for the same weights, and its own rules."""

import json

import pytest
import torch
import transformers

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.inference import SamplingConfig, generate_ids, make_sequences
from nbllm.inference.engine import decode
from nbllm.inference.execution import Execution
from nbllm.inference.runners import compiled
from nbllm.inference.runners.called import CalledRunner
from nbllm.inference.runners.compiled import CompiledRunner
from nbllm.models.loading import load_model

COUNT = 16
BEAMS = SamplingConfig(num_beams=4, max_new_tokens=COUNT)
# Flat distributions, in which many beams change places; the end token comes up in some of them.
SHAPE = dict(vocab_size=60, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    if request.param == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SHAPE)
    else:
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, **SHAPE,
        )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 60, (n,), generator=generator).tolist() for n in (1, 5, 17, 9)]


def theirs_of(model, prompts, *, ends=(), **more):
    """Return the tokens that transformers generates from a left-padded batch, and the scores of the texts."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {
        "max_new_tokens": COUNT,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": [*ends] or None,
    }
    out = model.generate(
        ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **settings | more
    )
    texts = [row[width:].tolist() for row in out.sequences]
    return [_until(text, ends) for text in texts], out.sequences_scores.tolist()


def _until(text, ends):
    at = next((place for place, token in enumerate(text) if token in ends), len(text))
    return text[:at]


def ours_of(model, prompts, config, ends=(), **more):
    given = [prompt for prompt in prompts for _ in range(config.num_return_sequences)]
    sequences = make_sequences(given, config, eos_id=None, end_ids=ends)
    decode(model, sequences, config, **more)
    return sequences


CASES = {
    "usual": {},
    "many": {"num_beams": 7, "num_return_sequences": 3},
    "short": {"length_penalty": 0.0},
    "negative": {"length_penalty": -1.0, "early_stopping": "never"},
    "long": {"length_penalty": 2.0, "early_stopping": "never"},
    "early": {"early_stopping": True, "num_return_sequences": 4},
    "penalized": {"repetition_penalty": 1.3},
}


@pytest.mark.parametrize("num_ends", [0, 1, 3])
@pytest.mark.parametrize("case", CASES)
def test_it_equals_transformers_token_for_token(pair, prompts, case, num_ends):
    theirs, ours = pair
    free, _ = theirs_of(theirs, prompts, num_beams=4)
    ends = [free[0][5], free[1][9], free[2][3]][:num_ends]
    settings = {"num_beams": 4, **CASES[case]}
    expected, scores = theirs_of(theirs, prompts, ends=ends, **settings)
    made = ours_of(ours, prompts, SamplingConfig(max_new_tokens=COUNT, **settings), ends)
    assert [sequence.tokens for sequence in made] == expected
    torch.testing.assert_close(torch.tensor([sequence.score for sequence in made]), torch.tensor(scores))
    if num_ends == 3 and case != "long":
        assert "eos" in {sequence.stopped_by for sequence in made}


def test_a_beam_search_finds_likelier_texts_than_greedy_choice(pair, prompts):
    _, ours = pair
    best = ours_of(ours, prompts, BEAMS.replace(length_penalty=0.0))
    greedy = generate_ids(ours, prompts, SamplingConfig(temperature=0, max_new_tokens=COUNT), eos_id=None)
    assert all(len(tokens) == COUNT for tokens in greedy)
    for sequence, prompt, tokens in zip(best, prompts, greedy, strict=True):
        logits = ours(torch.tensor([prompt + tokens])).detach()[0, len(prompt) - 1 : -1]
        found = float(logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
        assert sequence.score >= found - 1e-4
    assert [sequence.tokens for sequence in best] != greedy


@pytest.mark.parametrize("runner", [CalledRunner, CompiledRunner])
def test_every_runner_and_batch_size_gives_the_same_texts(pair, prompts, runner, monkeypatch):
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)
    _, ours = pair
    expected = [ours_of(ours, [prompt], BEAMS, (7,))[0].tokens for prompt in prompts]
    for batch_size in (1, 9, 32):
        made = ours_of(
            ours, prompts, BEAMS.replace(batch_size=batch_size), (7,), execution=Execution(runner=runner)
        )
        assert [sequence.tokens for sequence in made] == expected


def test_a_text_ends_where_the_positions_do(pair):
    _, ours = pair
    long, short = ours_of(ours, [[5] * 60, [5, 6, 7]], BEAMS)
    assert (long.stopped_by, len(long.tokens)) == ("context", 5)  # the last token is not read
    assert (short.stopped_by, len(short.tokens)) == ("length", COUNT)
    assert long.tokens == ours_of(ours, [[5] * 60], BEAMS)[0].tokens


def test_what_is_stopped_has_the_best_beams_so_far(pair, prompts):
    _, ours = pair
    asked = []
    made = ours_of(ours, prompts, BEAMS, should_stop=lambda: asked.append(0) or len(asked) > 5)
    assert {sequence.stopped_by for sequence in made} == {"caller"}
    assert [sequence.tokens for sequence in made] == generate_ids(
        ours, prompts, BEAMS.replace(max_new_tokens=5), eos_id=None
    )


def test_an_interrupt_keeps_what_there_is(pair, prompts):
    _, ours = pair
    asked = []

    def interrupt():
        asked.append(0)
        if len(asked) > 3:
            raise KeyboardInterrupt

    sequences = make_sequences(prompts, BEAMS, eos_id=None)
    with pytest.raises(KeyboardInterrupt):
        decode(ours, sequences, BEAMS, should_stop=interrupt)
    assert {(sequence.stopped_by, len(sequence.tokens)) for sequence in sequences} == {("interrupt", 3)}


# ---- as a person asks for it


@pytest.fixture(scope="module")
def lm():
    tokenizer = nb.data.train_tokenizer(
        ["the cat sat on the mat and the dog sat on the log"] * 4, vocab_size=280
    )
    return nb.LM.new(
        "gpt2", tokenizer=tokenizer, num_layers=1, hidden_size=32, num_heads=2, max_positions=64,
        initializer_range=0.4,
    )  # fmt: skip


def test_lm_generate_returns_the_best_texts(lm):
    settings = {"num_beams": 3, "max_new_tokens": 8}
    best = lm.generate("the cat", **settings)
    several = lm.generate(["the cat", "a dog"], num_return_sequences=2, **settings)
    assert isinstance(best, str) and best.tokens == several[0].tokens
    assert [made.prompt for made in several] == ["the cat", "the cat", "a dog", "a dog"]
    assert several[0].score >= several[1].score and several[0].tokens != several[1].tokens
    assert lm.generate("the cat", temperature=0, **settings) == best
    assert len(lm.generate("the cat", num_return_sequences=2, **settings)) == 2


def test_several_texts_are_drawn_for_a_prompt(lm):
    drawn = lm.generate("the cat", num_return_sequences=3, max_new_tokens=8)
    assert len({tuple(made.tokens) for made in drawn}) == 3
    assert drawn == lm.generate(["the cat"] * 3, max_new_tokens=8)
    assert drawn[0].score is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 0}, "num_beams must be"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams cannot return 3"),
        ({"num_beams": 2, "temperature": 0.7}, "draws nothing, so temperature"),
        ({"num_beams": 2, "top_k": 5}, "draws nothing, so top_k"),
        ({"num_beams": 2, "stop": "x"}, "stop strings"),
        ({"num_beams": 2, "overflow": "slide"}, "cannot be dropped"),
        ({"num_beams": 2, "early_stopping": "soon"}, 'True, False or "never"'),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty must be"),
        ({"num_beams": 2, "stream": True}, "cannot stream"),
        ({"num_beams": 200}, "200 beams need 400 tokens"),
        ({"length_penalty": 2.0}, "length_penalty is for beam search"),
        ({"early_stopping": True}, "early_stopping is for beam search"),
        ({"temperature": 0, "num_return_sequences": 2}, "all texts of a prompt are the same"),
    ],
)
def test_settings_that_make_no_sense_are_refused(lm, settings, words):
    with pytest.raises(UserError, match=words):
        lm.generate("the cat", **settings)


def test_a_chat_has_no_beams(lm):
    with pytest.raises(UserError, match="num_beams is not for a chat"):
        lm.chat("the cat", num_beams=2)
    with pytest.raises(UserError, match="on_token is not for a beam search"):
        generate_ids(lm.model, [[1]], BEAMS, eos_id=None, on_token=lambda index, token: None)


def test_recommended_beams_are_used_saved_and_give_way_to_what_is_asked(lm, tmp_path):
    search = {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True}
    settings = {"max_new_tokens": 8}
    path = lm.save(tmp_path / "model")
    stated = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**stated, **search, "temperature": 0.5}))
    opened = nb.load(path)
    assert opened.sampling == {"temperature": 0.5, **search}
    again = nb.load(opened.save(tmp_path / "again"))
    assert again.sampling == opened.sampling
    for each in (opened, again):
        assert each.generate("the cat", **settings) == lm.generate("the cat", **search, **settings)
        assert each.generate("the cat", seed=1, **settings) == lm.generate("the cat", seed=1, **settings)
        assert each.chat("the cat", seed=1, **settings).text == lm.chat(
            "the cat", seed=1, temperature=0.5, top_p=1.0, **settings
        ).text  # fmt: skip
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path / "again")
    assert {name: getattr(theirs, name) for name in search} == search and not theirs.do_sample


@pytest.mark.realmodel
def test_a_real_model_equals_transformers(smollm2, tmp_path):
    lm = nb.load(smollm2, dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(lm.save(tmp_path / "model")).eval()
    prompts = ["The capital of France is", "def fibonacci(n):", "Once upon a time, there was a"]
    settings = {"num_beams": 4, "length_penalty": 0.8, "early_stopping": True}
    ids = [lm.tokenizer(prompt)["input_ids"] for prompt in prompts]
    expected, _ = theirs_of(theirs, ids, ends=lm.end_tokens, max_new_tokens=24, **settings)
    made = lm.generate(prompts, max_new_tokens=24, **settings)
    assert [each.tokens for each in made] == expected
