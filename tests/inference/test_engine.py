"""The decoding loop against a loop without cache, batch or padding; and how it ends."""

import threading

import pytest
import torch
from transformers.generation import logits_process as reference

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import decode, generate_ids
from nbllm.inference.execution import Execution
from nbllm.inference.runners import compiled
from nbllm.inference.sequence import make_sequences

GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)
SAMPLED = SamplingConfig(temperature=1.3, top_p=0.95, max_new_tokens=12, seed=5)


@pytest.fixture(params=["called", "compiled"], autouse=True)
def runner(request, monkeypatch):
    """Everything holds for both model runners."""
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0 if request.param == "compiled" else 1 << 62)


def prompts(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, 300, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def plain_greedy(model, prompt, count, *, penalty=1.0, keep=None):
    """One sequence, everything read anew for each token."""
    ids, window = list(prompt), list(prompt)
    for _ in range(count):
        if keep is not None and len(window) > model.config.max_positions:
            window = window[-keep:]
        logits = model(torch.tensor([window]))[:, -1]
        logits = reference.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits)
        token = int(logits.argmax())
        ids.append(token)
        window.append(token)
    return ids[len(prompt) :]


def test_greedy_with_cache_is_greedy_without(model):
    for prompt in prompts(1, 2, 9, 30):
        expected = plain_greedy(model, prompt, 12)
        assert len(set(expected)) > 2, "a model that repeats one token would show nothing"
        assert generate_ids(model, [prompt], GREEDY, eos_id=None) == [expected]


def test_the_repetition_penalty_is_transformers(model):
    (prompt,) = prompts(9)
    expected = plain_greedy(model, prompt, 30, penalty=1.7)
    assert expected != plain_greedy(model, prompt, 30)
    config = SamplingConfig(temperature=0, max_new_tokens=30, repetition_penalty=1.7)
    assert generate_ids(model, [prompt, prompt[:4]], config, eos_id=None)[0] == expected


@pytest.mark.parametrize("config", [GREEDY, SAMPLED, SAMPLED.replace(repetition_penalty=1.5)])
def test_a_batch_equals_one_by_one(model, config):
    given = prompts(7, 1, 30, 3, 19)
    alone = [generate_ids(model, [prompt], config, eos_id=None)[0] for prompt in given]
    assert generate_ids(model, given, config, eos_id=None) == alone
    assert generate_ids(model, given[::-1], config, eos_id=None) == alone[::-1]
    assert generate_ids(model, given, config.replace(batch_size=2), eos_id=None) == alone


def test_rows_that_end_leave_the_batch_and_change_nothing(model):
    given = prompts(7, 1, 30, 3, 19)
    config = SAMPLED.replace(max_new_tokens=25)
    free = generate_ids(model, given, config, eos_id=None)
    eos = free[2][4]  # the longest prompt, whose row sets the width of the batch, is the first to end
    sizes = []
    handle = model.embedding.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = generate_ids(model, given, config, eos_id=eos)
    handle.remove()
    assert sizes[0] == 5 and sizes[-1] < 5
    for tokens, full in zip(together, free, strict=True):
        assert tokens == (full[: full.index(eos)] if eos in full else full)


def test_the_same_prompt_twice_gives_two_texts_of_which_the_first_is_the_one_alone(model):
    (prompt,) = prompts(5)
    first, second = generate_ids(model, [prompt, prompt], SAMPLED, eos_id=None)
    assert first != second
    assert generate_ids(model, [prompt], SAMPLED, eos_id=None) == [first]
    assert generate_ids(model, [prompt], SAMPLED.replace(seed=6), eos_id=None) != [first]


def test_without_a_seed_texts_differ_and_the_seed_is_recorded(model):
    (prompt,) = prompts(5)
    config = SAMPLED.replace(seed=None)
    (one,), (two,) = (make_sequences([prompt], config, eos_id=None) for _ in range(2))
    decode(model, [one], config)
    decode(model, [two], config)
    assert one.tokens != two.tokens
    assert generate_ids(model, [prompt], config.replace(seed=one.seed), eos_id=None) == [one.tokens]


def test_the_cache_is_used(model):
    read = []
    handle = model.embedding.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    generate_ids(model, prompts(9), GREEDY, eos_id=None, execution=Execution(drafter=None))
    handle.remove()
    assert read == [9] + [1] * 11


def ended(model, given, config, eos_id=None, **more):
    sequences = make_sequences(given, config, eos_id=eos_id)
    decode(model, sequences, config, **more)
    return sequences


def test_each_way_to_end(model):
    given = prompts(9, 4)
    free = generate_ids(model, given, GREEDY, eos_id=None)
    assert [row.stopped_by for row in ended(model, given, GREEDY)] == ["length", "length"]
    (row,) = ended(model, given[:1], GREEDY, eos_id=free[0][5])
    assert (row.stopped_by, row.tokens) == ("eos", free[0][: free[0].index(free[0][5])])
    (row,) = ended(model, given[:1], GREEDY, on_change=lambda row: len(row.tokens) == 3)
    assert (row.stopped_by, row.tokens) == ("stop", free[0][:3])
    answers = iter([False, False, True])
    rows = ended(model, given, GREEDY, should_stop=lambda: next(answers))
    assert [(row.stopped_by, row.tokens) for row in rows] == [
        ("caller", free[0][:2]),
        ("caller", free[1][:2]),
    ]
    assert all(row.seconds > 0 for row in rows)


def test_should_stop_ends_prompts_that_were_not_begun(model):
    rows = ended(model, prompts(3, 4, 5), GREEDY.replace(batch_size=1), should_stop=lambda: True)
    assert [(row.stopped_by, row.tokens) for row in rows] == [("caller", [])] * 3


def test_on_token_sees_every_token_and_can_end(model):
    seen = {0: [], 1: []}
    given = prompts(9, 4)

    def on_token(index, token):
        seen[index].append(token)
        return index == 1 and len(seen[1]) == 4

    tokens = generate_ids(model, given, GREEDY, eos_id=None, on_token=on_token)
    assert tokens == [seen[0], seen[1]]
    assert [len(each) for each in tokens] == [12, 4]


def test_full_positions_end_the_text(model):
    limit = model.config.max_positions
    config = GREEDY.replace(max_new_tokens=500)
    given = prompts(limit - 3, limit, 5)
    rows = ended(model, given, config)
    assert [row.stopped_by for row in rows] == ["context"] * 3
    # The last token needs no position: nothing is predicted from it.
    assert [len(row.tokens) for row in rows] == [4, 1, limit - 5 + 1]
    assert rows[2].tokens == plain_greedy(model, given[2], limit - 4)


def test_the_sliding_window_keeps_the_newest_half_alone_and_in_a_batch(model):
    limit = model.config.max_positions
    config = GREEDY.replace(max_new_tokens=90, overflow="slide")
    given = prompts(limit + 9, 5, limit - 2)
    expected = [plain_greedy(model, prompt, 90, keep=limit // 2) for prompt in given]
    assert [generate_ids(model, [prompt], config, eos_id=None)[0] for prompt in given] == expected
    assert generate_ids(model, given, config, eos_id=None) == expected


def test_no_prompts_give_no_texts(model):
    assert generate_ids(model, [], GREEDY, eos_id=7) == []


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_modes_are_restored_and_training_goes_on_afterwards(make_model, family):
    model = make_model(family).train()
    model.blocks[1].eval()
    before = [module.training for module in model.modules()]
    inside = []
    handle = model.blocks[0].register_forward_pre_hook(lambda block, _: inside.append(block.training))
    generate_ids(model, prompts(3, 9), GREEDY, eos_id=None)
    handle.remove()
    assert inside and not any(inside)
    assert [module.training for module in model.modules()] == before
    # Nothing that the model keeps may be an inference tensor: autograd refuses those.
    model(torch.tensor(prompts(40))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_error_restores_modes_and_releases_the_lock(model):
    lock = threading.Lock()
    model.train()

    def fail(index, token):
        assert lock.locked()
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        generate_ids(model, prompts(3), GREEDY, eos_id=None, on_token=fail, lock=lock)
    assert model.training and not lock.locked() and not torch.is_inference_mode_enabled()
    model.eval()


def test_the_global_random_state_is_not_touched(model):
    state = torch.random.get_rng_state()
    generate_ids(model, prompts(3, 9), SAMPLED, eos_id=None)
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_interrupt_keeps_and_marks_the_text_so_far(model):
    given = prompts(9, 4)
    sequences = make_sequences(given, GREEDY, eos_id=None)
    calls = []

    def interrupt(row):
        calls.append(row)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(model, sequences, GREEDY, on_change=interrupt)
    assert [(row.stopped_by, len(row.tokens)) for row in sequences] == [("interrupt", 3), ("interrupt", 2)]


def test_a_bfloat16_model_generates(make_model):
    model = make_model("llama").to(torch.bfloat16)
    assert [len(tokens) for tokens in generate_ids(model, prompts(3, 9), SAMPLED, eos_id=None)] == [12, 12]


@pytest.mark.parametrize(
    ("given", "config", "message"),
    [
        ([[5, 300]], GREEDY, "vocabulary of 300.\n  where: prompt 0"),
        ([[1], [-1]], GREEDY, "vocabulary of 300.\n  where: prompt 1"),
        ([[1] * 65], GREEDY, "The prompt has 65 tokens; the model has positions for 64."),
        ([[]], GREEDY, "The prompt is empty"),
        ([[1]], GREEDY.replace(stop="x"), "stop strings need a tokenizer"),
    ],
)
def test_bad_input(gpt2, given, config, message):
    with pytest.raises(UserError) as error:
        generate_ids(gpt2, given, config, eos_id=None)
    assert message in str(error.value)


def test_a_diverged_model_is_named(make_model):
    model = make_model()
    with torch.no_grad():
        model.norm.weight[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate_ids(model, [[1, 2]], SAMPLED, eos_id=None)
