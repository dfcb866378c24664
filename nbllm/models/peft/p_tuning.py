"""P-tuning (version 1): the vectors before a text are made by a small network, the prompt encoder."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.config import check_choice
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Part, draw_normal, draw_uniform, empty
from nbllm.models.peft.adapted_network import NetworkPart
from nbllm.models.peft.method import ADAPTERS, AdapterConfig, check_count, check_positions, network_for
from nbllm.models.peft.prompt_tuning import prompt_width

ENCODERS = ("mlp", "lstm")


class EncodedPrompt(NetworkPart):
    """Embedded tokens that a prompt encoder makes of trained vectors.

    Args:
        network: The network.
        settings: Of the encoder.
    """

    def __init__(self, network: Network, settings: PTuning) -> None:
        super().__init__()
        like = network.get_parameter("embedding.weight")
        width = prompt_width(network)
        hidden = settings.encoder_hidden_size or width
        self.num_prompt_tokens = settings.num_virtual_tokens
        self.embedding = empty(settings.num_virtual_tokens, width, like=like)
        self.lstm: nn.LSTM | None = None
        with torch.device("meta"):  # where nothing is drawn
            if settings.encoder == "lstm":
                self.lstm = nn.LSTM(
                    width, hidden, settings.encoder_num_layers, bidirectional=True, batch_first=True
                )
                layers: list[nn.Module] = [
                    nn.Linear(2 * hidden, 2 * hidden),
                    nn.ReLU(),
                    nn.Linear(2 * hidden, width),
                ]
            else:
                layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
                layers.append(nn.Linear(hidden, width))
        self.mlp = nn.Sequential(*layers)
        for module in (self.mlp, self.lstm):
            if module is not None and like.device.type != "meta":
                module.to_empty(device=like.device).to(like.dtype)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Draw vectors normally, and the encoder uniformly, as torch draws its layers."""
        draw_normal(self.embedding, 1.0, draw)
        for name, parameter in self.named_parameters():
            if name.startswith("lstm"):
                assert self.lstm is not None
                draw_uniform(parameter, 1 / math.sqrt(self.lstm.hidden_size), draw)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                for tensor in (layer.weight, layer.bias):
                    draw_uniform(tensor, 1 / math.sqrt(layer.in_features), draw)

    def prompt(self) -> Float[Tensor, "token hidden"]:
        """Return what the encoder makes of the vectors."""
        encoded: Tensor = self.embedding[None]
        if self.lstm is not None:
            encoded = self.lstm(encoded)[0]
        out: Tensor = self.mlp(encoded)[0]
        return out


@ADAPTERS.register("p_tuning")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuning(AdapterConfig):
    """Vectors before every text are trained through a prompt encoder (P-tuning, version 1).

    Args:
        num_virtual_tokens: How many; they take as many positions.
        encoder: "mlp", three layers with ReLU, or "lstm", a bidirectional LSTM and two layers.
        encoder_hidden_size: Width of the encoder; None: that of the model.
        encoder_num_layers: Layers of the LSTM.

    Source: Liu et al. 2021, arXiv:2103.10385.
    """

    name: ClassVar[str] = "p_tuning"
    label: ClassVar[str] = "P-tuning"
    relative_learning_rate: ClassVar[float] = 5.0

    num_virtual_tokens: int = 20
    encoder: str = "mlp"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_count(self.num_virtual_tokens, "num_virtual_tokens", self.label)
        check_count(self.encoder_num_layers, "encoder_num_layers", self.label)
        if self.encoder_hidden_size is not None:
            check_count(self.encoder_hidden_size, "encoder_hidden_size", self.label)
        check_choice(self, "encoder", ENCODERS)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return vectors and encoder, which belong to the network."""
        network = network_for(model, self.label)
        check_positions(network, self.num_virtual_tokens, self.label)
        return {"": EncodedPrompt(network, self)}

    @property
    def num_positions(self) -> int:
        """How many positions its virtual tokens take."""
        return self.num_virtual_tokens

    def describe(self) -> str:
        """Return how many vectors there are, and by what they are made."""
        return f"{self.num_virtual_tokens} virtual tokens, made by an {self.encoder.upper()}"
