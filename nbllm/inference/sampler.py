"""From a step's logits to the next token of each sequence."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nbllm.inference.config import SamplingConfig
from nbllm.inference.constraints import constrain
from nbllm.inference.sampling import check_finite, choose, penalize_repetition
from nbllm.inference.sequence import Sequence
from nbllm.inference.token_probabilities import token_probabilities


class Sampler:
    """Chooses tokens for sequences that are generated together.

    Args:
        config: How to choose.
        num_alternatives: Above 0, each sequence is also given its tokens' probabilities, with so many alternatives.
    """

    def __init__(self, config: SamplingConfig, num_alternatives: int = 0) -> None:
        self._config, self._num_alternatives = config, num_alternatives
        self._seen: dict[Sequence, tuple[Bool[Tensor, " vocabulary"], int]] = {}  # and of how many tokens

    def __call__(self, logits: Float[Tensor, "row vocabulary"], sequences: list[Sequence]) -> list[int]:
        """Return the next token of each sequence; draws one random number of each.

        Raises:
            UserError: A logit is NaN or positive infinity.
        """
        check_finite(logits)
        if self._config.repetition_penalty != 1:
            seen = torch.stack([self._seen_by(sequence, logits) for sequence in sequences])
            logits = penalize_repetition(logits, seen, self._config.repetition_penalty)
        logits = constrain(logits, sequences, [sequence.tokens for sequence in sequences], self._config)
        chosen = choose(logits, self._config, [sequence.generator for sequence in sequences])
        if self._num_alternatives > 0:
            found = token_probabilities(logits, chosen, self._num_alternatives)
            for sequence, probability in zip(sequences, found, strict=True):
                sequence.probabilities.append(probability)
        tokens: list[int] = chosen.tolist()
        return tokens

    def _seen_by(self, sequence: Sequence, logits: Tensor) -> Bool[Tensor, " vocabulary"]:
        """Return which tokens are in a sequence's prompt or text."""
        if sequence not in self._seen:
            self._seen[sequence] = torch.zeros_like(logits[0], dtype=torch.bool), 0
        seen, count = self._seen[sequence]
        tokens = sequence.prompt + sequence.tokens
        seen[torch.tensor(tokens[count:], device=seen.device)] = True
        self._seen[sequence] = seen, len(tokens)
        return seen
