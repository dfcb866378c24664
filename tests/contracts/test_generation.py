"""A drafter, a model runner or a cache of one's own is one class, and changes no text."""

import dataclasses

import pytest
import torch
from torch import nn

from nbllm.inference.config import SamplingConfig
from nbllm.inference.drafters.base import MAX_DRAFT_TOKENS
from nbllm.inference.drafters.prompt_lookup import PromptLookup
from nbllm.inference.engine import decode, generate_ids
from nbllm.inference.execution import Execution
from nbllm.inference.runners import compiled
from nbllm.inference.runners.called import CalledRunner
from nbllm.inference.runners.compiled import CompiledRunner
from nbllm.inference.sequence import make_sequences
from nbllm.inference.text import generate
from nbllm.models.config import ModelConfig
from nbllm.models.decoder import Decoder

CONFIGS = {
    "greedy": SamplingConfig(temperature=0, max_new_tokens=30),
    "sampled": SamplingConfig(temperature=0.7, top_k=40, max_new_tokens=20, seed=2),
    "penalized": SamplingConfig(temperature=0.6, max_new_tokens=30, repetition_penalty=1.2, seed=3),
    "sliding": SamplingConfig(temperature=1.2, top_p=0.9, max_new_tokens=90, overflow="slide", seed=4),
}
PROMPTS = [[1, 2, 3, 4, 1, 2, 3], [9] * 5, list(range(3))]
NO_DRAFTS = Execution(drafter=None)


# ---- what a user of the library might write


class Parrot:
    """A drafter that is nearly always wrong, and proposes more than is asked for."""

    def propose(self, tokens, most):
        return [tokens[-1], 7, 8, 9, 10, 11, 12, 13, 14][: most + 2]


class Counting:
    """A model runner that calls the model, and counts."""

    def __init__(self, model, workspace):
        self.runner, self.steps = CalledRunner(model, workspace), []
        Counting.last = self

    def run(self, step):
        self.steps.append([len(row) for row in step.tokens])
        return self.runner.run(step)


class Bytes:
    """As much of a tokenizer as `generate` needs."""

    eos_token = eos_token_id = bos_token = bos_token_id = sep_token = sep_token_id = None

    def get_added_vocab(self):
        return {}

    def __call__(self, text, **_):
        return {"input_ids": list(text.encode())}

    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))


class State:
    """The cache of a recurrent network: a vector a sequence, from which no token can be taken back."""

    can_crop, max_length = False, 1 << 40

    def __init__(self, batch_size, size):
        self.state, self.length = torch.zeros(batch_size, size), 0

    @property
    def num_bytes(self):
        return self.state.nbytes

    def advance(self, count):
        self.length += count

    def crop(self, length):
        raise AssertionError("can_crop is False")

    def gather(self, rows):
        self.state = self.state[rows]

    def reset(self):
        self.state, self.length = torch.zeros_like(self.state), 0

    def fits(self, batch_size, max_length, dtype, device):
        return (len(self.state), self.state.dtype, self.state.device) == (batch_size, dtype, device)


@dataclasses.dataclass
class RecurrentConfig:
    vocab_size: int = 300
    max_positions: int = 64


class Recurrent(nn.Module):
    """A recurrent network: what it keeps of the past is one vector, of whatever length that was."""

    reads_prefix = False
    num_virtual_tokens = 0

    def __init__(self):
        super().__init__()
        self.config = RecurrentConfig()
        self.context_length = self.config.max_positions
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(300, 16, generator=generator))
        self.mix = nn.Parameter(0.4 * torch.randn(16, 16, generator=generator))

    def make_cache(self, batch, max_length):
        return State(batch, 16)

    def hidden(self, ids, *, cache=None, positions=None, attention_mask=None):
        state = torch.zeros(len(ids), 16) if cache is None else cache.state
        out = []
        for place in range(ids.shape[1]):
            new = torch.tanh(state @ self.mix + self.embedding[ids[:, place]])
            if attention_mask is not None:
                column = attention_mask.shape[1] - ids.shape[1] + place
                new = torch.where(attention_mask[:, column, None], new, state)
            state = new
            out.append(state)
        if cache is not None:
            cache.state = state
            cache.advance(ids.shape[1])
        return torch.stack(out, dim=1)

    def logits(self, hidden):
        return hidden @ self.embedding.T


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    shape = dict(vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, max_positions=64)
    llama = dict(positions="rotary", norm="rms_norm", activation="silu", gated=True, num_kv_heads=2)
    more = llama if request.param == "llama" else {}
    return Decoder(ModelConfig(family=request.param, initializer_range=0.4, **shape, **more), seed=1)


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)


def texts(model, config, execution, prompts=PROMPTS):
    """Return the texts of prompts, each by itself."""
    return [generate_ids(model, [each], config, eos_id=None, execution=execution)[0] for each in prompts]


# ---- what holds for each of them


@pytest.mark.parametrize("config", ["greedy", "penalized", "sliding"])
def test_drafts_and_runners_change_no_text(model, config):
    config = CONFIGS[config]
    expected = texts(model, config, Execution(runner=CalledRunner, drafter=None))
    assert len(set(map(tuple, expected))) == len(PROMPTS)
    for runner in (CalledRunner, CompiledRunner):
        for drafter in (PromptLookup, Parrot):
            assert texts(model, config, Execution(runner=runner, drafter=drafter)) == expected
    assert texts(model, config, NO_DRAFTS) == expected


@pytest.mark.parametrize("runner", [CalledRunner, CompiledRunner])
def test_sequences_that_run_together_get_no_drafts_and_the_same_texts(model, runner):
    config = CONFIGS["sampled"]
    together = generate_ids(
        model, PROMPTS, config, eos_id=None, execution=Execution(runner=runner, drafter=Parrot)
    )
    assert together == texts(model, config, NO_DRAFTS)


def test_a_runner_of_ones_own_serves_generate(model):
    config = CONFIGS["greedy"].replace(max_new_tokens=9)
    made = generate(model, Bytes(), "ab", config=config, execution=Execution(runner=Counting, drafter=None))
    assert made.tokens == generate_ids(model, [list(b"ab")], config, eos_id=None)[0]
    assert Counting.last.steps == [[2]] + [[1]] * 8  # the last token is not read


def test_only_the_compiled_kernel_is_given_drafts_unasked(model, monkeypatch):
    """A called model computes several tokens to other bits than one, and perhaps for nothing."""
    assert Execution().drafter_for(CompiledRunner) is PromptLookup
    assert Execution().drafter_for(CalledRunner) is None
    assert Execution(drafter=Parrot).drafter_for(CalledRunner) is Parrot
    config, prompt = CONFIGS["greedy"].replace(max_new_tokens=9), [5, 6, 7, 5, 6, 7, 5, 6]
    monkeypatch.setattr(Execution, "runner_for", lambda self, model: Counting)
    generate_ids(model, [prompt], config, eos_id=None)
    assert Counting.last.steps == [[8]] + [[1]] * 8


def test_accepted_draft_tokens_are_not_read_again(model):
    config, prompt = SamplingConfig(temperature=0, max_new_tokens=33), [1, 2, 3]
    (text,) = texts(model, config, NO_DRAFTS, [prompt])

    class Oracle:
        def propose(self, tokens, most):
            assert most <= MAX_DRAFT_TOKENS
            done = len(tokens) - len(prompt)
            return text[done : done + most]

    assert texts(model, config, Execution(runner=Counting, drafter=Oracle), [prompt]) == [text]
    assert Counting.last.steps == [[3], [8], [8], [8], [8]]  # 33 tokens, of which the last is not read


def test_a_text_may_end_within_a_draft(model):
    (text,) = texts(model, CONFIGS["greedy"], NO_DRAFTS, [[1, 2, 3]])
    asked = []

    class Oracle:
        def propose(self, tokens, most):
            return text[len(tokens) - 3 :][:most]

    def ended(**how):
        (sequence,) = make_sequences([[1, 2, 3]], CONFIGS["greedy"], eos_id=how.pop("eos_id", None))
        decode(model, [sequence], CONFIGS["greedy"], execution=Execution(drafter=Oracle), **how)
        return sequence.stopped_by, sequence.tokens

    first = text.index(text[4])
    assert ended(eos_id=text[4]) == ("eos", text[:first])
    assert ended(on_change=lambda sequence: len(sequence.tokens) == 5) == ("stop", text[:5])
    assert ended(should_stop=lambda: asked.append(0) or len(asked) > 4) == ("caller", text[:4])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_network_whose_cache_is_no_cache_of_keys_and_values(config):
    """Its text is that of a loop that reads everything anew; rows leave its cache, and drafts are not tried."""
    network, config = Recurrent(), CONFIGS[config]
    together = generate_ids(network, PROMPTS, config, eos_id=None, execution=Execution(drafter=Parrot))
    assert together == texts(network, config, NO_DRAFTS)
    if config.greedy:
        tokens = list(PROMPTS[0])
        for _ in range(30):
            tokens.append(int(network.logits(network.hidden(torch.tensor([tokens])))[0, -1].argmax()))
        assert together[0] == tokens[len(PROMPTS[0]) :]
    eos = together[1][3]
    ended = generate_ids(network, PROMPTS, config, eos_id=eos)
    assert ended == [each[: each.index(eos)] if eos in each else each for each in together]
