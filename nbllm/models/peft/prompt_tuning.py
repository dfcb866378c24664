"""Prompt tuning: trained vectors stand as tokens before every text."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.config import check_choice
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Part, draw_normal, empty
from nbllm.models.peft.adapted_network import NetworkPart
from nbllm.models.peft.method import ADAPTERS, AdapterConfig, check_count, check_positions, network_for

STARTS = ("vocabulary", "normal")


class Prompt(NetworkPart):
    """Embedded tokens, trained as they are.

    Args:
        network: The network.
        num_tokens: How many.
        start: As `PromptTuning` takes it.
    """

    def __init__(self, network: Network, num_tokens: int, start: str) -> None:
        super().__init__()
        table = network.get_parameter("embedding.weight")
        self.num_prompt_tokens, self._start = num_tokens, start
        self.embedding = empty(num_tokens, prompt_width(network), like=table)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Draw the vectors, or the tokens whose embeddings they begin as."""
        table = module.get_parameter("embedding.weight")
        if self._start == "vocabulary" and table.shape[1] == self.embedding.shape[1]:
            chosen = torch.randint(len(table), (self.num_prompt_tokens,), generator=draw)
            self.embedding.copy_(table[chosen.to(table.device)])
        else:
            draw_normal(self.embedding, 1.0, draw)

    def prompt(self) -> Float[Tensor, "token hidden"]:
        """Return the vectors."""
        return self.embedding


def prompt_width(network: Network) -> int:
    """Return how wide the embeddings of tokens are where a prompt stands before them."""
    config = network.config
    of_table = network.get_parameter("embedding.weight").shape[1]
    return of_table if config.network == "encoder" else config.hidden_size


@ADAPTERS.register("prompt_tuning")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTuning(AdapterConfig):
    """Vectors that stand as tokens before every text are trained, and nothing else.

    With an encoder-decoder they stand before what the encoder reads.

    Args:
        num_virtual_tokens: How many; they take as many positions.
        start: "vocabulary", the embeddings of tokens drawn at random, or "normal", standard normal numbers.

    Source: Lester et al. 2021, arXiv:2104.08691.
    """

    name: ClassVar[str] = "prompt_tuning"
    label: ClassVar[str] = "Prompt-tuning"
    relative_learning_rate: ClassVar[float] = 150.0

    num_virtual_tokens: int = 20
    start: str = "vocabulary"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_count(self.num_virtual_tokens, "num_virtual_tokens", self.label)
        check_choice(self, "start", STARTS)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return the vectors, which belong to the network."""
        network = network_for(model, self.label)
        check_positions(network, self.num_virtual_tokens, self.label)
        return {"": Prompt(network, self.num_virtual_tokens, self.start)}

    @property
    def num_positions(self) -> int:
        """How many positions its virtual tokens take."""
        return self.num_virtual_tokens

    def describe(self) -> str:
        """Return how many vectors there are."""
        return f"{self.num_virtual_tokens} virtual tokens"
