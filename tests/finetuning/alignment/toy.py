"""A policy that is a table over all 64 sequences of three tokens out of four, whose optimum is known in closed form."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from nbllm.distributed.layout import OneProcess
from nbllm.finetuning.alignment.rollout_stepper import RolloutStepper
from nbllm.objectives import OBJECTIVES
from nbllm.training.config import TrainConfig
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW
from nbllm.training.train_state import TrainState


class Table(nn.Module):
    """Logits of the next token for every beginning: a causal network with one-hot hidden states.

    Args:
        num_tokens: Of the vocabulary.
        length: Of a sequence.
        logits: (beginning, token); the empty one first, then those of one token, of two, ...
    """

    logit_softcap = 0.0
    head_bias = None

    def __init__(self, num_tokens: int, length: int, logits: torch.Tensor) -> None:
        super().__init__()
        self.num_tokens, self.length = num_tokens, length
        self.head_weight = nn.Parameter(logits.t().contiguous())
        self.sequences = torch.tensor(list(itertools.product(range(num_tokens), repeat=length)))

    def beginnings(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the row of the table for what stands before each of these tokens, (sequence, token)."""
        rows, value, first = [], torch.zeros(len(tokens), dtype=torch.long), 0
        for column in range(tokens.shape[1]):
            rows.append(first + value)
            first += self.num_tokens**column
            value = value * self.num_tokens + tokens[:, column]
        return torch.stack(rows, 1)

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return one-hot rows; the prompt is the first token."""
        answers = torch.nn.functional.pad(inputs[:, 1:], (0, 1))
        return torch.nn.functional.one_hot(self.beginnings(answers), self.head_weight.shape[1]).float()

    def log_probs(self) -> torch.Tensor:
        """Return the log-probability of each of `sequences`, float64."""
        every = self.head_weight.detach().double().t().log_softmax(-1)
        return every[self.beginnings(self.sequences), self.sequences].sum(1)


def toy(seed: int, *, num_tokens: int = 4, length: int = 3) -> tuple[Table, torch.Tensor]:
    """Return a random reference, and the reward of each of its sequences."""
    draw = torch.Generator().manual_seed(seed)
    beginnings = sum(num_tokens**column for column in range(length))
    table = Table(num_tokens, length, torch.randn(beginnings, num_tokens, generator=draw) * 0.7)
    return table, torch.randn(len(table.sequences), generator=draw)


def train(table: Table, rewards: torch.Tensor, method: str, seed: int, *, answers: int, **settings) -> None:
    """Train the table by a method on its own sequences."""
    config = TrainConfig.from_dict(
        {
            "objective": method, "batch_size": answers, "sequence_length": table.length + 1, "schedule": "linear",
            "min_lr_ratio": 0.0, "warmup_steps": 1, "weight_decay": 0.0, "clip": 1e6, "seed": seed,
            "samples": answers, "prompts": 1, "max_new_tokens": table.length, **settings,
        }
    )  # fmt: skip
    objective = OBJECTIVES[method](None)
    optimizer = Optimizer(OneProcess(table), AdamW)
    stepper = RolloutStepper(objective, optimizer, None, config, "cpu")
    objective.configure(config.objective_settings)
    objective.begin_with(table)
    state = TrainState(values=config.values)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(config.steps):
        chosen = torch.multinomial(table.log_probs().exp().float(), answers, replacement=True, generator=draw)
        tokens = table.sequences[chosen]
        batch = {
            "inputs": torch.nn.functional.pad(tokens[:, :-1], (1, 0)),
            "starts": torch.ones(answers, dtype=torch.long),
            "answers": tokens,
            "mask": torch.ones_like(tokens, dtype=torch.bool),
        }
        stepper.configure(state.values)
        _, learned = stepper.learn(state, batch, rewards[chosen])
        assert learned.good
        state = state.replace(step=state.step + 1)


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return KL(one, other) of two distributions, given as log-probabilities."""
    return float((one.exp() * (one - other)).sum())
