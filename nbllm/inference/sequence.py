"""A prompt and what is generated for it."""

from __future__ import annotations

import dataclasses
import secrets
from collections import Counter
from collections.abc import Collection
from typing import TypeVar

import torch

from nbllm.core.errors import UserError
from nbllm.core.seeding import generator
from nbllm.inference.config import SamplingConfig
from nbllm.inference.decoder_tokens import DecoderTokens
from nbllm.inference.token_probabilities import TokenProbability

Prompt = TypeVar("Prompt")


@dataclasses.dataclass(eq=False)
class Sequence:
    """One prompt and what was generated for it.

    Args:
        index: Its place among the prompts.
        prompt: Token ids, at least one.
        generator: What its random numbers come from.
        seed: The seed that the generator was made from.
        end_ids: The tokens that end it.
        source: What an encoder reads; None: the model has none.
        forced_first: The first of `tokens`, whatever is predicted; None: what is chosen.
        forced_last: The last of `max_new_tokens` tokens, whatever is predicted; None: what is chosen.
        tokens: What was generated, without the end token.
        ended_by: The end token that was chosen, where one was.
        stopped_by: Why it ended, a key of `generation.ENDINGS`; `None` while it goes on.
        start: Where the context begins in prompt and tokens: the sliding window drops what is before.
        seconds: Wall time from the start of the call to its last token.
        score: Of a beam search, the log-probability of its tokens, divided by their number to the `length_penalty`.
        probabilities: Those of `tokens`, and of an end token after them, if `decode` was asked for them.
    """

    index: int
    prompt: list[int]
    generator: torch.Generator
    seed: int
    end_ids: frozenset[int] = frozenset()
    source: list[int] | None = None
    forced_first: int | None = None
    forced_last: int | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    ended_by: int | None = None
    stopped_by: str | None = None
    start: int = 0
    seconds: float = 0.0
    score: float | None = None
    probabilities: list[TokenProbability] = dataclasses.field(default_factory=list)

    @property
    def context(self) -> list[int]:
        """The tokens that the next one is predicted from."""
        return (self.prompt + self.tokens)[self.start :]

    @property
    def context_length(self) -> int:
        """Number of tokens in the context."""
        return len(self.prompt) + len(self.tokens) - self.start


def make_sequences(
    prompts: list[list[int]],
    config: SamplingConfig,
    *,
    eos_id: int | None,
    end_ids: Collection[int] = (),
    decoder_tokens: DecoderTokens | None = None,
) -> list[Sequence]:
    """Make a sequence of each prompt, with random numbers of its own.

    These depend on the seed, the prompt and how often the same prompt came before it in the list: not on the other
    prompts.

    Args:
        prompts: Token ids, at least one each.
        config: Its `seed`; `None` takes a fresh one for all.
        eos_id: The end token, or `None`.
        end_ids: Other tokens that end a sequence.
        decoder_tokens: Of an encoder-decoder: the encoder reads the prompts, and the decoder's text begins anew, with
            these.

    Raises:
        UserError: A prompt is empty.
    """
    seed = secrets.randbits(63) if config.seed is None else config.seed
    ends = frozenset(end_ids) | (frozenset() if eos_id is None else {eos_id})
    before: Counter[tuple[int, ...]] = Counter()
    sequences = []
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(
                "The prompt is empty, and there is no token that documents begin with.",
                where=f"prompt {index}",
                hint="give a prompt of at least one token",
            )
        key = tuple(prompt)
        numbers = generator(seed, "generate", key, before[key])
        before[key] += 1
        sequence = Sequence(index, list(prompt), numbers, seed, ends)
        if decoder_tokens is not None:
            sequence.source, sequence.prompt = sequence.prompt, [decoder_tokens.decoder_start_token_id]
            sequence.forced_first = decoder_tokens.forced_bos_token_id
            sequence.forced_last = decoder_tokens.forced_eos_token_id
        sequences.append(sequence)
    return sequences


def repeated(prompts: list[Prompt], config: SamplingConfig) -> list[Prompt]:
    """Return each prompt as often as texts are wanted for it."""
    return [prompt for prompt in prompts for _ in range(config.num_return_sequences)]
