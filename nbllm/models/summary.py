"""What a model consists of, as rows: parts, shapes, parameters, memory."""

from __future__ import annotations

import dataclasses

from torch import nn

from nbllm.models.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a summary.

    Attributes:
        part: Where in the model.
        what: What it is, in words.
        shape: The shapes of its matrices.
        parameters: How many numbers it learns, all its copies together.
        num_bytes: Their memory.
    """

    part: str
    what: str
    shape: str
    parameters: int
    num_bytes: int


def summarize(model: Decoder) -> list[Row]:
    """Return a model's rows: embedding, positions, the parts of all blocks together, norm, head."""
    config = model.config
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f", {config.num_kv_heads} key/value heads"
    norm = {"layer_norm": "LayerNorm", "rms_norm": "RMSNorm"}[config.norm]
    activation = {"gelu_tanh": "GELU (tanh)", "gelu": "GELU", "silu": "SiLU", "relu": "ReLU"}[
        config.activation
    ]
    gate = "gated " if config.gated else ""
    blocks = list(model.blocks)
    many = f"{config.num_layers} x "
    parts: list[tuple[str, str, list[nn.Module | None]]] = [
        ("embedding", "token embedding", [model.embedding]),
        (
            "positions",
            f"{config.positions} positions"
            + (f", base {config.rope_theta:g}" if config.positions == "rotary" else ""),
            [model.positions],
        ),
        ("blocks.*.attention", f"{many}{norm} + attention: {heads}", _parts(blocks, "attention")),
        (
            "blocks.*.feed_forward",
            f"{many}{norm} + {gate}feed-forward: {activation}, {config.intermediate_size} wide",
            _parts(blocks, "feed_forward"),
        ),
        ("norm", norm, [model.norm]),
        ("head", "head" if model.head is not None else "head, tied to the embedding", [model.head]),
    ]
    return [_row(part, what, modules, config.num_layers) for part, what, modules in parts]


def _parts(blocks: list[nn.Module], name: str) -> list[nn.Module | None]:
    return [getattr(block, part) for block in blocks for part in (f"{name}_norm", name)]


def _row(part: str, what: str, modules: list[nn.Module | None], copies: int) -> Row:
    weights = [weight for module in modules if module is not None for weight in module.parameters()]
    once = weights[: len(weights) // copies] if "*" in part else weights
    shapes = [" x ".join(map(str, weight.shape)) for weight in once if weight.dim() > 1]
    return Row(
        part,
        what,
        ", ".join(shapes) or "-",
        sum(weight.numel() for weight in weights),
        sum(weight.nbytes for weight in weights),
    )
