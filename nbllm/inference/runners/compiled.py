"""Runs decoding steps of few tokens in one compiled kernel, where it computes what calling the model would.

A step of few tokens waits for the weights to come from memory; the kernel reads each of them once, where they lie, and
does nothing that makes it wait longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.progress import waiting
from nbllm.inference.drafters.base import MAX_DRAFT_TOKENS
from nbllm.inference.runners.base import Batch, Step
from nbllm.inference.runners.called import CalledRunner
from nbllm.inference.runners.compiled_spec import is_computed
from nbllm.nn import kernels
from nbllm.nn.positions import RotaryPositions

if TYPE_CHECKING:
    from nbllm.inference.workspace import Workspace
    from nbllm.models.decoder import Decoder
    from nbllm.models.network import GenerativeNetwork
    from nbllm.nn.kv_cache import KVCache

MIN_PARAMETERS = 1 << 20  # a smaller model has answered before Numba is loaded
MAX_TOKENS = 32  # of a step: with more, real matrix multiplications are faster
_KERNELS = {torch.float32: "decoding_float32", torch.bfloat16: "decoding_bfloat16"}
_PER_ROW = ("tokens", "sequences", "columns", "padding")  # int64 arrays of the kernel


def kernel_name(model: GenerativeNetwork) -> str | None:
    """Return the name of the kernel that computes this model; None where it is too small for one or there is none."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return None
    if weight.dtype not in _KERNELS or sum(each.numel() for each in model.parameters()) < MIN_PARAMETERS:
        return None
    return _KERNELS[weight.dtype] if is_computed(model) else None


def load_kernel(model: GenerativeNetwork) -> None:
    """Load the kernel that computes this model; a line says so where a cell waits for it to be compiled."""
    name = kernel_name(model)
    if name is not None:
        with waiting("Loading the decoding kernel; if it must be compiled first, that takes 15 seconds"):
            kernels.compiled(name)


class CompiledRunner:
    """A model runner for the models that it `serves`.

    Prompts, and steps of more than `MAX_TOKENS` tokens, are computed by calling the model.

    Args:
        model: The network; its weights must stay where they are, not what they are.
        workspace: Where the kernel keeps intermediate results.
    """

    def __init__(self, model: GenerativeNetwork, workspace: Workspace) -> None:
        self._model, self._workspace = cast("Decoder", model), workspace  # `serves` looks at its class
        self._called = CalledRunner(model, workspace)
        self._batch: Batch | None = None
        self._bound: BoundKernel | None = None  # to that batch; None where the model is called

    @staticmethod
    def serves(model: GenerativeNetwork) -> bool:
        """Return whether the kernel computes what calling the model would, and could be compiled here.

        Looks at every module, so it is asked once a batch and not for every step.
        """
        name = kernel_name(model)
        return name is not None and kernels.compiled(name) is not None

    def run(self, step: Step) -> Float[Tensor, "row token vocabulary"]:
        """Read a step's tokens; see `ModelRunner`."""
        batch = step.batch
        if batch.cache.length == 0 or sum(map(len, step.tokens)) > MAX_TOKENS:
            return self._called.run(step)
        if self._batch is not batch or (self._bound and self._bound.threads < torch.get_num_threads()):
            # Asked again whenever addresses are taken: a callback may have replaced weights since, which then no longer
            # lie side by side, and the kernel would read beyond their memory.
            serves = self.serves(self._model)
            self._batch = batch
            self._bound = BoundKernel(self._model, self._workspace, batch) if serves else None
        if self._bound is None:
            return self._called.run(step)
        return self._bound(step.tokens)[:, -step.num_logits :]


class BoundKernel:
    """The kernel with the addresses of a model's weights, of a batch's cache and of its buffers.

    Args:
        model: A decoder that the kernel computes.
        workspace: Where the buffers are.
        batch: Its cache is added to.

    Attributes:
        max_rows: The most tokens at a time.
        threads: The most threads.
    """

    def __init__(self, model: Decoder, workspace: Workspace, batch: Batch) -> None:
        self._batch_size = len(batch.padding)
        self.max_rows, self.threads = max(self._batch_size, 1 + MAX_DRAFT_TOKENS), torch.get_num_threads()
        config, cache = model.config, cast("KVCache", batch.cache)
        self._cache = cache
        layout, attention = kernels.compiled("decoding"), kernels.compiled("cached_attention")
        assert layout is not None and attention is not None
        chunks = attention.num_chunks.py_func(cache.max_length)  # not compiled for one call
        shapes = _buffer_shapes(config, self.max_rows, self.threads, chunks, attention.CHUNK)
        self._buffers = {name: workspace.buffer(name, *shape) for name, shape in shapes.items()}
        self._rows = np.zeros((len(_PER_ROW), self.max_rows), np.int64)
        self._padding = batch.padding.numpy()
        buffers = cache.buffers
        rows = [_layer_row(block, buffer) for block, buffer in zip(model.blocks, buffers, strict=True)]
        self._layers = np.array(rows, layout.LAYER)
        self._rotation = _rotation(model, cache.max_length)
        # The kernel reads them by address: they must not go away while it may be called.
        self._weights, self._held = [each.data for each in model.parameters()], buffers
        self._kernel = _KERNELS[self._weights[0].dtype]
        addresses = {
            **{name: buffer.data_ptr() for name, buffer in self._buffers.items()},
            **{name: row.ctypes.data for name, row in zip(_PER_ROW, self._rows, strict=True)},
            "layer_table": self._layers.ctypes.data,
            "embedding": model.embedding.weight.data_ptr(),
            "positions": _address(model.positions, "weight"),
            "cos": self._rotation[0].data_ptr() if self._rotation else 0,
            "sin": self._rotation[1].data_ptr() if self._rotation else 0,
            "norm": _address(model.norm, "weight"),
            "norm_bias": _address(model.norm, "bias"),
            "head": model.head_weight.data_ptr(),
        }
        sizes = {
            "batch": self._batch_size,
            "capacity": cache.max_length,
            **_sizes(config, layout.ACTIVATIONS),
        }
        self._pass = np.zeros(1, layout.PASS)
        for name, value in (addresses | sizes).items():
            self._pass[name] = value

    def __call__(self, tokens: list[list[int]]) -> Float[Tensor, "sequence token vocabulary"]:
        """Read as many tokens of each sequence, all together at most `max_rows`.

        Returns:
            float32 logits of what comes after each token; they stand until the next call.

        Raises:
            ValueError: They are too many, or the cache is full.
        """
        count = len(tokens[0])
        rows = len(tokens) * count
        too_many = rows > self.max_rows or torch.get_num_threads() > self.threads
        if len(tokens) != self._batch_size or too_many:
            raise ValueError("the buffers are too small for so many tokens or threads")
        sequences = np.repeat(np.arange(self._batch_size), count)
        columns = np.tile(self._cache.length + np.arange(count), self._batch_size)
        if columns[-1] >= self._cache.max_length:
            raise ValueError("the cache is full")
        self._rows[:, :rows] = np.ravel(tokens), sequences, columns, self._padding[sequences]
        self._pass["rows"] = rows
        kernels.run(self._kernel, "step", 0, self._pass.ctypes.data)
        self._cache.advance(count)
        return self._buffers["logits"][:rows].view(self._batch_size, count, -1)


def _buffer_shapes(
    config: Any, rows: int, threads: int, chunks: int, chunk: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the kernel's buffers, by the names of their addresses in `decoding.PASS`."""
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    return {
        "stream": (rows, config.hidden_size),
        "normal": (threads, rows, config.hidden_size),
        "qkv": (rows, heads + 2 * kv_heads, head_dim),
        "gathered": (rows, heads, head_dim),
        "up": (rows, (1 + config.gated) * config.intermediate_size),
        "expanded": (rows, config.intermediate_size),
        "scores": (threads, heads // kv_heads, chunk),
        "partial": (rows, heads, chunks, 2 + head_dim),
        "logits": (rows, config.vocab_size),
    }


def _sizes(config: Any, activations: tuple[str, ...]) -> dict[str, float]:
    """Return what `decoding.PASS` holds of a configuration."""
    return {
        "eps": config.norm_eps,
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "inner": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "activation": activations.index(config.activation),
        "gated": config.gated,
        "centred": config.norm == "layer_norm",
    }


def _layer_row(block: Any, cache: Tensor) -> tuple[int, ...]:
    """Return a layer's row of the kernel's table, in the order of `decoding.LAYER`.

    Of joined layers, the first one's address is that of all.
    """
    attention, feed_forward = block.attention, block.feed_forward
    modules = (
        block.attention_norm, attention.query, attention.output, block.feed_forward_norm,
        feed_forward.gate or feed_forward.up, feed_forward.down,
    )  # fmt: skip
    weights = [_address(module, name) for module in modules for name in ("weight", "bias")]
    return (*weights, cache.data_ptr())


def _address(module: nn.Module | None, name: str) -> int:
    """Return where a parameter lies; 0 where there is none."""
    parameter = getattr(module, name, None)
    return 0 if parameter is None else parameter.data_ptr()


def _rotation(model: Decoder, length: int) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines of all positions, where queries and keys are rotated."""
    if not isinstance(model.positions, RotaryPositions):
        return None
    return model.positions.table(length, model.embedding.weight.device)
