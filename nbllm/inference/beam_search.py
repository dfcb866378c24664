"""Beam search: several beginnings of each text are continued together, and the likeliest texts returned.

Source: Wu et al. 2016 (length normalization), arXiv:1609.08144, section 7; transformers' `generate`, whose rules of
when a beam is finished and the search ends these are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig
from nbllm.inference.constraints import constrain, is_forced_last
from nbllm.inference.runners.base import Batch, ModelRunner, Step
from nbllm.inference.sampling import check_finite, penalize_repetition
from nbllm.inference.sequence import Sequence

if TYPE_CHECKING:
    from nbllm.nn.cache import Cache

_NEVER = -1e9  # a score that no text has: that of beams which only fill up their number


class Candidate(NamedTuple):
    """A beam with one more token.

    Attributes:
        score: The log-probability of all its tokens.
        beam: Which beam of its prompt it continues.
        token: The token.
    """

    score: float
    beam: int
    token: int


@dataclasses.dataclass(frozen=True)
class Beam:
    """A text, or the beginning of one.

    Attributes:
        tokens: What was generated, without the end token.
        score: The log-probability of its tokens; of a finished text, after the length penalty.
        ended: Why it ended, a key of `generation.ENDINGS`; None: it goes on.
    """

    tokens: list[int]
    score: float
    ended: str | None = None


class PromptBeams:
    """The beams of one prompt.

    Args:
        sequences: Of that prompt; they are given the best texts when the search ends.
        config: How many beams, how long, and how they are compared.
        max_positions: The longest context.
    """

    def __init__(self, sequences: list[Sequence], config: SamplingConfig, max_positions: int) -> None:
        self.sequences, self._config = sequences, config
        room = max_positions + 1 - len(sequences[0].prompt)  # the last token is not read
        self.max_new_tokens = min(config.max_new_tokens, room)
        self._full = "length" if config.max_new_tokens <= room else "context"
        # The first step continues the prompt alone.
        self.running = [Beam([], 0.0 if place == 0 else _NEVER) for place in range(config.num_beams)]
        self.finished: list[Beam] = []  # the best first
        self.is_done = False

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens."""
        return self.sequences[0].prompt

    def advance(self, candidates: list[Candidate]) -> list[int]:
        """Keep the best continuations.

        Args:
            candidates: The best of all beams, the best first; so many that `num_beams` of them do not end.

        Returns:
            Which of the beams before each beam now continues.
        """
        running: list[tuple[int, Beam]] = []
        for rank, (score, parent, token) in enumerate(candidates):
            beam = self._continued(self.running[parent], score, token)
            if beam.ended is None:
                running.append((parent, beam))
            elif rank < self._config.num_beams and score > _NEVER / 2:
                length = len(beam.tokens) + (beam.ended == "eos")
                finished = dataclasses.replace(beam, score=self._normalized(score, length))
                self.finished.append(finished)
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[self._config.num_beams :]
        if not running:
            self.is_done = True
            return []
        parents, beams = zip(*running[: self._config.num_beams], strict=True)
        self.running = list(beams)
        self.is_done = self._cannot_improve()
        return list(parents)

    def end(self, reason: str | None = None) -> None:
        """Give the sequences their texts: finished ones, or where those are too few, `reason` ended the best beams."""
        count = len(self.running[0].tokens)
        going = [
            Beam(beam.tokens, self._normalized(beam.score, max(count, 1)), reason) for beam in self.running
        ]
        for sequence, beam in zip(self.sequences, [*self.finished, *going], strict=False):
            sequence.tokens, sequence.stopped_by, sequence.score = beam.tokens, beam.ended, beam.score
            if beam.ended == "eos" and is_forced_last(sequence, len(beam.tokens), self._config):
                sequence.stopped_by = "length"

    def _continued(self, beam: Beam, score: float, token: int) -> Beam:
        if token in self.sequences[0].end_ids:
            return Beam(beam.tokens, score, "eos")
        tokens = [*beam.tokens, token]
        return Beam(tokens, score, self._full if len(tokens) == self.max_new_tokens else None)

    def _normalized(self, score: float, length: int) -> float:
        return float(score / length**self._config.length_penalty)

    def _cannot_improve(self) -> bool:
        """Return whether the search ends, as `early_stopping` says; only once there are `num_beams` texts."""
        config = self._config
        if len(self.finished) < config.num_beams:
            return False
        if config.early_stopping is True:
            return True
        longest = config.early_stopping == "never" and config.length_penalty > 0
        length = self.max_new_tokens if longest else len(self.running[0].tokens)
        return self._normalized(self.running[0].score, length) <= self.finished[-1].score


class BeamSearch:
    """Searches the texts of prompts, `config.batch_size` beams at a time.

    A prompt is read once, and its row of the cache copied for each beam. A prompt whose search has ended leaves the
    batch.

    Args:
        sequences: As many for each prompt, in a row, as texts are wanted.
        config: How many beams, how long, and how they are compared.
        max_positions: The longest context.
        vocab_size: Tokens of the model's vocabulary.
        make_cache: Returns an empty cache of so many sequences and at least so many tokens.
        runner: Computes the logits.

    Raises:
        UserError: There are too few tokens for so many beams.
    """

    def __init__(
        self,
        sequences: list[Sequence],
        config: SamplingConfig,
        *,
        max_positions: int,
        vocab_size: int,
        make_cache: Callable[[int, int], Cache],
        runner: ModelRunner,
    ) -> None:
        self._config, self._make_cache, self._runner = config, make_cache, runner
        count = config.num_return_sequences
        self._prompts = [
            PromptBeams(sequences[place : place + count], config, max_positions)
            for place in range(0, len(sequences), count)
        ]
        # So many continuations of beams are looked at that there are enough if all beams can end in every way.
        ends = max((len(sequence.end_ids) for sequence in sequences), default=0)
        self._num_candidates = config.num_beams * max(2, 1 + ends)
        if vocab_size < self._num_candidates:
            raise UserError(
                f"{config.num_beams} beams need {self._num_candidates} tokens to choose from; the model's vocabulary "
                f"has {vocab_size}.",
                hint="Use fewer beams.",
            )

    def run(
        self, on_end: Callable[[Sequence], object], should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Search until every prompt has its texts.

        Args:
            on_end: Called with each sequence once it has its text.
            should_stop: Asked before each step; a true answer ends all ("caller").
        """
        together = max(1, self._config.batch_size // self._config.num_beams)
        stopped = False
        for first in range(0, len(self._prompts), together):
            prompts, reason = self._prompts[first : first + together], None
            try:
                stopped = stopped or not self._search(prompts, should_stop)
                reason = "caller"
            finally:
                for prompt in prompts:
                    prompt.end(reason)
            for sequence in (sequence for prompt in prompts for sequence in prompt.sequences):
                on_end(sequence)

    def _search(self, prompts: list[PromptBeams], should_stop: Callable[[], bool] | None) -> bool:
        """Search the texts of some prompts; return False if asked to stop before they have all ended."""
        lengths = torch.tensor([len(prompt.prompt) for prompt in prompts])
        columns = int(lengths.max())
        # The last token of a text is never read.
        cache = self._make_cache(len(prompts), columns + max(each.max_new_tokens for each in prompts) - 1)
        batch = Batch([prompt.sequences[0] for prompt in prompts], columns - lengths, cache)
        tokens = [[0] * (columns - len(prompt.prompt)) + prompt.prompt for prompt in prompts]
        width = 1  # rows of the cache for each prompt
        while should_stop is None or not should_stop():
            logits = self._runner.run(Step(batch, tokens))[:, -1]
            parents = self._advance(prompts, logits)
            rows = [
                row * width + (parent if width > 1 else 0)
                for row, prompt in enumerate(prompts)
                if not prompt.is_done
                for parent in parents[row]
            ]
            if not rows:
                return True
            going = [prompt for prompt in prompts if not prompt.is_done]
            batch = self._moved(batch, rows, [prompt for prompt in going for _ in prompt.running])
            prompts, width = going, self._config.num_beams
            tokens = [beam.tokens[-1:] for prompt in prompts for beam in prompt.running]
        return False

    def _moved(self, batch: Batch, rows: list[int], prompts: list[PromptBeams]) -> Batch:
        """Return the batch with the cache's rows as the beams now follow each other."""
        batch.cache.gather(torch.tensor(rows))
        sequences = [prompt.sequences[0] for prompt in prompts]
        if sequences == batch.sequences:
            return batch  # only which beam of a prompt a row holds has changed
        return Batch(sequences, batch.padding[torch.tensor(rows)], batch.cache)

    def _advance(
        self, prompts: list[PromptBeams], logits: Float[Tensor, "row vocabulary"]
    ) -> list[list[int]]:
        """Let every prompt keep its best continuations; return which beams those continue."""
        check_finite(logits)
        log_probabilities = logits.log_softmax(-1).unflatten(0, (len(prompts), -1))
        beams = self._config.num_beams
        log_probabilities = log_probabilities.expand(-1, beams, -1)  # of a prompt that was just read
        if self._config.repetition_penalty != 1:
            seen = _seen(prompts, log_probabilities)
            flat = log_probabilities.flatten(0, 1)
            flat = penalize_repetition(flat, seen, self._config.repetition_penalty)
            log_probabilities = flat.unflatten(0, (len(prompts), beams))
        beams_in_rows = [(prompt, beam) for prompt in prompts for beam in prompt.running]
        log_probabilities = constrain(
            log_probabilities.flatten(0, 1),
            [prompt.sequences[0] for prompt, _ in beams_in_rows],
            [beam.tokens for _, beam in beams_in_rows],
            self._config,
        ).unflatten(0, (len(prompts), beams))
        scores = torch.tensor([[beam.score for beam in prompt.running] for prompt in prompts])
        totals = (log_probabilities + scores.to(logits.device)[..., None]).flatten(1)
        values, places = totals.topk(self._num_candidates)
        vocabulary = logits.shape[-1]
        return [
            prompt.advance(
                [
                    Candidate(value, place // vocabulary, place % vocabulary)
                    for value, place in zip(*found, strict=True)
                ]
            )
            for prompt, *found in zip(prompts, values.tolist(), places.tolist(), strict=True)
        ]


def _seen(
    prompts: list[PromptBeams], logits: Float[Tensor, "prompt beam vocabulary"]
) -> Float[Tensor, "row vocabulary"]:
    """Return which tokens are in each beam's prompt or text."""
    seen = torch.zeros(logits.shape[0] * logits.shape[1], logits.shape[2], dtype=torch.bool)
    beams = ((prompt, beam) for prompt in prompts for beam in prompt.running)
    for row, (prompt, beam) in zip(seen, beams, strict=True):
        row[prompt.prompt + beam.tokens] = True
    return seen.to(logits.device)
