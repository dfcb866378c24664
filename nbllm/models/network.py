"""What every network is, whatever its architecture: how it is made, what it can do, and what it consists of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.core.quantities import size
from nbllm.core.registry import Registry
from nbllm.core.seeding import generator
from nbllm.models.config import ModelConfig, check_fixed
from nbllm.nn.hooks import keep_methods
from nbllm.nn.joined import empty_parameters
from nbllm.nn.mixture_of_experts import MixtureOfExperts, Routing, load_balancing_loss
from nbllm.nn.nf4_linear import NF4Linear
from nbllm.nn.normalization import NORMS

_SCALED_DOWN_BY_DEEPNORM = (
    "attention.value.weight", "attention.output.weight", "feed_forward.gate.weight", "feed_forward.up.weight",
    "feed_forward.down.weight",
)  # fmt: skip
VERBS = ("generate", "fill", "embed", "score", "denoise", "infill", "reward")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a network's description.

    Attributes:
        part: Where in the network.
        what: What it is, in words.
        shape: The shapes of its matrices.
        parameters: How many elements its parameters have, all its copies together.
        num_bytes: Their memory.
    """

    part: str
    what: str
    shape: str
    parameters: int
    num_bytes: int


@keep_methods
class Network(nn.Module):
    """Base of all networks. A subclass is one file that registers itself in `NETWORKS`.

    Args:
        config: Its shape.
        seed: Of the initial weights. They depend on the seed and each weight's name and shape alone; the global
            random state is neither read nor moved.

    Raises:
        UserError: The configuration has a setting that this network does not honour.

    Attributes:
        can: Which of `VERBS` it can do.
        kind: What it is, in words, for people who ask it for something else.
        takes_mask: Whether `hidden` takes `visible`, any mask of its attention, and `positions` with it.
        fixed: Settings of `ModelConfig` that it cannot vary.
        attention_backend: A name in `nn.attention_backends.BACKENDS`, or "auto": measured.
    """

    can: frozenset[str] = frozenset()
    kind: str = "network"
    takes_mask: ClassVar[bool] = False
    fixed: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        check_fixed(config, self.fixed, f"{config.network} network", "Leave this setting.")
        self.config = config
        self.attention_backend = "auto"
        # The layers' own initialisation would draw from the global random state; on "meta" it draws nothing.
        with torch.device("meta"):
            self.add_parts(config)
        device = torch.get_default_device()
        if device.type != "meta":
            self.load_state_dict(empty_parameters(self, device=device), assign=True)
            self.initialize(seed)

    def add_parts(self, config: ModelConfig) -> None:
        """Add the modules that the network consists of; to be defined by each network."""
        raise NotImplementedError

    def describe(self) -> list[Row]:
        """Return what the network consists of; to be defined by each network."""
        raise NotImplementedError

    @property
    def vocabulary_parameters(self) -> list[tuple[nn.Module, str]]:
        """The parameters with a row for each token, as module and name; to be defined by each network."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw new weights.

        Matrices are normal with `initializer_range`; those that write into a residual stream that is not normalized
        itself are scaled down by sqrt(2 * num_layers), as many as write into it. Biases are 0, and normalizations scale
        nothing. Where the stream is multiplied before each part is added (DeepNorm), values, outputs and feed-forward
        parts are divided by as much.

        Source: Radford et al. 2019 (GPT-2), section 2.3; Zeng et al. 2022 (GLM-130B), arXiv:2210.02414, section 2.1.
        """
        accumulates = self.config.norm_placement == "pre"
        residual = 1 / math.sqrt(2 * self.config.num_layers) if accumulates else 1.0
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                weight.fill_(0.0 if name.endswith("bias") else NORMS[self.config.norm].initial)
                continue
            into_stream = name.endswith(("attention.output.weight", "down.weight"))
            std = self.config.initializer_range * (residual if into_stream else 1.0)
            if name.endswith(_SCALED_DOWN_BY_DEEPNORM):
                std /= self.config.residual_scale
            if self.config.scale_head and name == "embedding.weight":
                std *= math.sqrt(self.config.hidden_size)  # that logits are as large as with another head
            # Drawn on the CPU in float32, so that every device and precision begins from the same weights.
            drawn = torch.empty(weight.shape, device="cpu", dtype=torch.float32)
            weight.copy_(drawn.normal_(0.0, std, generator=generator(seed, "weights", name)))

    @property
    def logit_softcap(self) -> float:
        """How the logits are bounded, softcap * tanh(logits / softcap), after the matrix of the head; 0: not."""
        return self.config.logit_softcap

    @property
    def num_virtual_tokens(self) -> int:
        """How many positions are taken by tokens that an adapter puts before every text."""
        return 0

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        return self.config.max_positions - self.num_virtual_tokens

    def embed_tokens(self, input_ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position _"]:
        """Return the embeddings of tokens, before positions are added and anything is normalized."""
        out: Tensor = self.get_submodule("embedding")(input_ids)
        return out

    @property
    def num_parameters(self) -> int:
        """How many elements the parameters have; a tied head counts once."""
        in_4_bits = sum(module.num_weights for module in self.modules() if isinstance(module, NF4Linear))
        return in_4_bits + sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_bytes(self) -> int:
        """Memory of the parameters, in bytes."""
        in_4_bits = sum(module.num_bytes for module in self.modules() if isinstance(module, NF4Linear))
        return in_4_bits + sum(parameter.nbytes for parameter in self.parameters())

    @property
    def num_active_parameters(self) -> int:
        """How many of them compute a token: of experts, those that are chosen for it."""
        config = self.config
        if not config.num_experts:
            return self.num_parameters
        mixtures = (module for module in self.modules() if isinstance(module, MixtureOfExperts))
        of_experts = sum(weight.numel() for mixture in mixtures for weight in mixture.experts.parameters())
        idle = config.num_experts - config.experts_per_token
        return self.num_parameters - of_experts * idle // config.num_experts

    def auxiliary_loss(self, routing: Routing) -> Tensor | None:
        """Return what training adds to the mean loss over tokens; None: nothing.

        Args:
            routing: What the routers chose in the forward pass.
        """
        weight = self.config.router_loss_weight
        return weight * load_balancing_loss(routing) if weight and routing.chosen else None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.parameters()).dtype


@keep_methods
class GenerativeNetwork(Network):
    """Base of the networks that write a text token by token.

    Attributes:
        embedding: The token embedding.
        head: What makes logits of hidden states; None: the embedding does.
    """

    embedding: nn.Embedding
    head: nn.Linear | None

    @property
    def head_weight(self) -> Float[Tensor, "vocabulary hidden"]:
        """The matrix that turns hidden states into logits: (vocabulary, hidden)."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def vocabulary_parameters(self) -> list[tuple[nn.Module, str]]:
        """The parameters with a row for each token: the embedding and, unless it is tied, the head."""
        # A stage of a pipeline may have no embedding.
        layers: list[nn.Module] = [each for each in (self.embedding, self.head) if each is not None]
        biases = [] if self.head is None or self.head.bias is None else [(self.head, "bias")]
        return [(layer, "weight") for layer in layers] + biases

    def logits(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocabulary"]:
        """Return the scores of every token of the vocabulary; to be defined by each network."""
        raise NotImplementedError

    def make_cache(self, batch: int, max_length: int) -> Any:
        """Return an empty `nn.cache.Cache` of this network's kind; to be defined by each network.

        Args:
            batch: Sequences.
            max_length: The most tokens of each.
        """
        raise NotImplementedError


@keep_methods
class CausalNetwork(GenerativeNetwork):
    """Base of the networks that predict each token from those before it: what generating and scoring ask of one."""

    can = frozenset({"generate", "score", "embed"})
    reads_prefix: ClassVar[bool] = (
        False  # whether `hidden` takes `prefix_lengths`, and reads a prompt as a prefix
    )

    def hidden(
        self,
        input_ids: Int[Tensor, "batch position"],
        *,
        cache: Any = None,
        positions: Int[Tensor, "batch position"] | None = None,
        attention_mask: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
    ) -> Float[Tensor, "batch position hidden"]:
        """Return what `logits` reads, at each position; to be defined by each network.

        Args:
            input_ids: (batch, position) token ids.
            cache: What `make_cache` made, with the state after the tokens before these; these are added to it.
            positions: (batch, position), the place of each token in its sequence. None: counted from the
                tokens held in the cache, and over the real tokens alone where there is a mask.
            attention_mask: (batch, key), nonzero at real tokens, zero at padding; the keys are those of the
                cache and then these. None: all are real.
        """
        raise NotImplementedError

    @property
    def head_bias(self) -> Float[Tensor, " vocabulary"] | None:
        """What is added to the logits, (vocabulary,); None: nothing."""
        return None if self.head is None else self.head.bias

    def logits(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocabulary"]:
        """Return the scores of every token of the vocabulary from the final hidden state."""
        logits = F.linear(hidden, self.head_weight, self.head_bias)
        softcap = self.logit_softcap
        return torch.tanh(logits / softcap) * softcap if softcap else logits


NETWORKS: Registry[type[Network]] = Registry("network")


def empty_embedding(rows: int, columns: int) -> nn.Embedding:
    """Return an embedding whose weights are not drawn.

    nn.Embedding(...) would draw them, and to draw on "meta" torch first imports sympy, which takes a second.
    """
    made: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, columns), freeze=False)
    return made


def build(config: ModelConfig, *, seed: int = 0) -> Network:
    """Return the network of a configuration, with new weights.

    Raises:
        UserError: There is no network of that name, or this machine's memory cannot hold it.
    """
    _check_memory(config)
    return _kind_of(config)(config, seed=seed)


def build_without_weights(config: ModelConfig) -> Network:
    """Return the network of a configuration with parameters on the device "meta", to be loaded into.

    Raises:
        UserError: There is no network of that name, or its sizes are beyond what a tensor can have.
    """
    try:
        with torch.device("meta"):
            return _kind_of(config)(config)
    except (
        RuntimeError,
        TypeError,
        OverflowError,
    ) as error:  # torch's, of sizes whose product it cannot count
        raise UserError(f"No tensor can have such sizes: {error}", where="ModelConfig") from None


def _check_memory(config: ModelConfig) -> None:
    """Refuse a model that this machine cannot hold, before anything of it is allocated."""
    from nbllm.core.machine import memory_limit

    try:
        needed, held = 4 * count_parameters(config), memory_limit()
    except RuntimeError as error:  # a matrix that no machine can hold
        raise UserError(f"The model cannot be built: {error}", where="ModelConfig") from error
    if needed > held:
        raise UserError(
            f"The model's parameters would take {size(needed)}; this machine has {size(held)} of memory.",
            where="ModelConfig",
            hint="Use fewer layers, or a smaller hidden_size or vocab_size.",
        )


def count_parameters(config: ModelConfig) -> int:
    """Return how many elements the parameters of a configuration's network have; a tied head counts once.

    Counted are networks of one and of two blocks without weights: every block of a stack has as many.
    """
    blocks, others = config.num_layer_groups or config.num_layers, config.num_decoder_layers
    one = _count_elements(config)
    block = _count_elements(config, blocks=2) - one
    other = _count_elements(config, others=2) - one if others else 0
    return one + (blocks - 1) * block + max(others - 1, 0) * other


def _count_elements(config: ModelConfig, *, blocks: int = 1, others: int = 1) -> int:
    """Return the elements of a network with so many blocks, and so many in a decoder beside the encoder."""
    smaller = config.replace(
        num_layers=blocks,
        num_layer_groups=blocks if config.num_layer_groups else 0,
        num_decoder_layers=others if config.num_decoder_layers else 0,
    )
    return sum(parameter.numel() for parameter in build_without_weights(smaller).parameters())


def _kind_of(config: ModelConfig) -> type[Network]:
    # Importing a network registers it.
    from nbllm.models import decoder, encoder, encoder_decoder, prefix_decoder, rwkv  # noqa: F401

    return NETWORKS[config.network]


def check_can(network: Network, verb: str) -> None:
    """Raise `UserError` with the reason unless the network can do `verb`."""
    assert verb in VERBS, verb
    if verb not in network.can:
        able = [name for name in VERBS if name in network.can]
        others = networks_that_can(verb)
        hints = [f"It can {', '.join(able)}."] if able else []
        if others:
            hints.append(f"Networks that can {verb}: {', '.join(others)}.")
        raise UserError(
            f"This model cannot {verb}: it is {network.kind}.", hint=" ".join(hints) if hints else None
        )


def networks_that_can(verb: str) -> list[str]:
    """Return the names of the networks that can do `verb`."""
    return [name for name in NETWORKS if verb in NETWORKS[name].can]


def describe_parts(parts: Sequence[tuple[str, str, Sequence[nn.Module | None]]], copies: int) -> list[Row]:
    """Return a row for each part of a network.

    Args:
        parts: Name, what it is in words, and its modules; a name with "*" is that of the same part of all layers.
        copies: How many layers there are.
    """
    return [_row(part, what, modules, copies) for part, what, modules in parts]


def with_norms(config: ModelConfig, part: str) -> str:
    """Return what a part of a block is, in words, with its normalizations in the order in which they are computed."""
    norm = NORMS[config.norm].label
    before = "" if config.norm_placement == "post" else f"{norm} + "
    return before + part + ("" if config.norm_placement == "pre" else f" + {norm}")


def of_blocks(blocks: nn.ModuleList, part: str) -> list[nn.Module | None]:
    """Return a part of every block, with its normalizations."""
    names = (f"{part}_norm", part, f"{part}_output_norm")
    return [getattr(block, name) for block in blocks for name in names]


def _row(part: str, what: str, modules: Sequence[nn.Module | None], copies: int) -> Row:
    weights: list[Any] = [
        weight for module in modules if module is not None for weight in module.parameters()
    ]
    in_4_bits = [
        layer
        for module in modules
        if module is not None
        for layer in module.modules()
        if isinstance(layer, NF4Linear)
    ]
    once = weights[: len(weights) // copies] if "*" in part else weights
    shapes = [" x ".join(map(str, weight.shape)) for weight in once if weight.dim() > 1]
    for layer in in_4_bits[: len(in_4_bits) // copies] if "*" in part else in_4_bits:
        shapes.append(f"{layer.out_features} x {layer.in_features} in 4 bits")
    num_bytes = sum(weight.nbytes for weight in weights) + sum(layer.num_bytes for layer in in_4_bits)
    count = sum(weight.numel() for weight in weights) + sum(layer.num_weights for layer in in_4_bits)
    return Row(part, what, ", ".join(shapes) or "-", count, num_bytes)
