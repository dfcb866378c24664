"""Greedy text against transformers' `generate` for the same weights."""

import pytest
import torch
import transformers

from nbllm.inference import SamplingConfig, generate, generate_ids
from nbllm.models.loading import load_model

COUNT = 40
GREEDY = SamplingConfig(temperature=0, max_new_tokens=COUNT)


def reference_model(family):
    common = dict(vocab_size=300, initializer_range=0.4, bos_token_id=0, eos_token_id=0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=128,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            **common,
        )
        kind = transformers.GPT2LMHeadModel
    else:
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, **common,
        )  # fmt: skip
        kind = transformers.LlamaForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return kind(config).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    theirs = reference_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, load_model(folder)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 300, (n,), generator=generator).tolist() for n in (1, 5, 17, 60)]


def their_greedy(model, prompts, *, eos_id=None, **more):
    """Left-padded, with transformers' own attention mask and positions."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=COUNT,
        pad_token_id=0,
        eos_token_id=eos_id,
        **more,
    )
    return [row[width:].tolist() for row in out]


def test_greedy(pair, prompts):
    theirs, ours = pair
    for prompt in prompts:
        (expected,) = their_greedy(theirs, [prompt])
        assert len(set(expected)) > 3, "a model that repeats itself would show nothing"
        assert generate_ids(ours, [prompt], GREEDY, eos_id=None) == [expected]


def test_greedy_in_a_left_padded_batch(pair, prompts):
    theirs, ours = pair
    assert generate_ids(ours, prompts, GREEDY, eos_id=None) == their_greedy(theirs, prompts)


def test_the_end_token(pair, prompts):
    theirs, ours = pair
    eos = their_greedy(theirs, prompts[1:2])[0][7]
    expected = their_greedy(theirs, prompts, eos_id=eos)
    assert [eos in row for row in expected].count(True) >= 1
    expected = [row[: row.index(eos)] if eos in row else row for row in expected]
    assert generate_ids(ours, prompts, GREEDY, eos_id=eos) == expected


@pytest.mark.parametrize("penalty", [1.2, 3.0])
def test_the_repetition_penalty(pair, prompts, penalty):
    theirs, ours = pair
    config = GREEDY.replace(repetition_penalty=penalty)
    for prompt in prompts:
        (expected,) = their_greedy(theirs, [prompt], repetition_penalty=penalty)
        assert expected != their_greedy(theirs, [prompt])[0]
        assert generate_ids(ours, [prompt], config, eos_id=None) == [expected]


def test_a_stop_string_ends_at_the_same_token(pair, tokenizer):
    theirs, ours = pair
    free = generate(ours, tokenizer, "the cat sat", config=GREEDY)
    # transformers matches token by token and knows no replacement characters: take a stop string of ASCII.
    stop = next(pair for i in range(5, len(free)) if len(pair := free[i : i + 2]) == 2 and pair.isascii())
    ids = tokenizer("the cat sat", return_tensors="pt")
    out = theirs.generate(
        **ids, do_sample=False, max_new_tokens=COUNT, eos_token_id=0, pad_token_id=0, stop_strings=[stop],
        tokenizer=tokenizer,
    )  # fmt: skip
    made = generate(ours, tokenizer, "the cat sat", config=GREEDY.replace(stop=stop))
    assert made.stopped_by == "stop"
    assert made.tokens == out[0, ids["input_ids"].shape[1] :].tolist()


def test_drawn_tokens_have_transformers_probabilities(pair, prompts):
    """Two thousand draws of the next token against the softmax that transformers' own filters leave."""
    theirs, ours = pair
    prompt = prompts[2]
    config = SamplingConfig(temperature=1.5, top_k=8, max_new_tokens=1, batch_size=500)
    drawn = torch.tensor(generate_ids(ours, [prompt] * 2000, config, eos_id=None))[:, 0]
    with torch.no_grad():
        logits = theirs(torch.tensor([prompt])).logits[:, -1] / 1.5
    expected = transformers.TopKLogitsWarper(8)(None, logits).softmax(-1)[0]
    found = drawn.bincount(minlength=300) / 2000
    assert not found[expected == 0].any()
    # Four standard deviations of a share measured 2,000 times.
    assert ((found - expected).abs() <= 4 * (expected * (1 - expected) / 2000).sqrt() + 1e-9).all()
