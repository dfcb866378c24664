"""What makes decoding quick: a model's weights as one kernel reads them, and the room that it works in.

Projections are stored fused, so the weights are read where they lie and none is copied. What is kept from one
generation to the next is the working memory, and the cache of keys and values; `release` gives both back.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.core.progress import waiting
from nbllm.inference.decoding_spec import is_computed
from nbllm.inference.lookup import MANY
from nbllm.nn import kernels
from nbllm.nn.kv_cache import KVCache
from nbllm.nn.positions import RotaryPositions

if TYPE_CHECKING:
    from nbllm.models.decoder import Decoder

FEWEST = 1 << 20  # parameters: a smaller model has answered before Numba is loaded
MOST_ROWS = 32  # tokens at a time: with more, real matrix products earn what they cost
MOST_OF_ONE = 1 + MANY  # tokens of one sequence at a time: the newest, and what is guessed to follow
_KERNELS = {torch.float32: "decoding_float32", torch.bfloat16: "decoding_bfloat16"}
_OF_ROWS = ("tokens", "sequences", "columns", "padding")


class Prepared:
    """A model made ready to decode; of one generation at a time."""

    def __init__(self) -> None:
        self._rooms: dict[str, Tensor] = {}
        self._cache: KVCache | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes; the model's weights are not in it."""
        cache = 0 if self._cache is None else self._cache.num_bytes
        return cache + sum(room.nbytes for room in self._rooms.values())

    def cache(self, model: Decoder, batch: int, max_length: int) -> KVCache:
        """Return an empty cache for `batch` sequences of at least `max_length` tokens: the last one, if it serves."""
        weight = model.embedding.weight
        if self._cache is None or not self._cache.serves(batch, max_length, weight.dtype, weight.device):
            self.drop_cache()  # first: two are not to be there at a time
            self._cache = model.make_cache(batch, max_length)
        self._cache.crop(0)
        return self._cache

    def drop_cache(self) -> None:
        """Let go of the keys and values."""
        self._cache = None

    def room(self, name: str, *shape: int) -> Tensor:
        """Return working memory that holds any float32 numbers."""
        size, room = math.prod(shape), self._rooms.get(name)
        if room is None or room.numel() < size:
            self._rooms[name] = room = torch.empty(size, dtype=torch.float32, device="cpu")
        return room[:size].view(shape)


_kept: weakref.WeakKeyDictionary[Decoder, Prepared] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def prepared(model: Decoder) -> Iterator[Prepared]:
    """Lend what is prepared for a model; a second generation beside the first gets one of its own."""
    made = _kept.pop(model, None) or Prepared()
    try:
        yield made
    except BaseException:
        made.drop_cache()  # it may hold what is not finite
        raise
    finally:
        _kept[model] = made


def held_bytes(model: Decoder) -> int:
    """Return how much memory is kept for the model's next generation, in bytes."""
    made = _kept.get(model)
    return 0 if made is None else made.num_bytes


def release(model: Decoder) -> int:
    """Give back what is kept for the model's next generation; return how many bytes."""
    made = _kept.pop(model, None)
    return 0 if made is None else made.num_bytes


def load_kernel(model: Decoder) -> None:
    """Load the kernel for such a model, which a new machine must compile; a line says so where a cell waits for it."""
    name = _kernel_of(model)
    if name is not None:
        with waiting(
            "Loading the kernel that decodes; where it must be compiled first, that takes 15 seconds"
        ):
            kernels.compiled(name)


def _kernel_of(model: Decoder) -> str | None:
    """Return the name of the kernel that computes this model; None where it is too small for one or there is none."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu" or model.num_parameters < FEWEST:
        return None
    return _KERNELS.get(weight.dtype) if is_computed(model) else None


def can_step(model: Decoder, rows: int) -> bool:
    """Return whether `Steps` computes what the model would, for so many sequences: where not, the model is called."""
    if rows > MOST_ROWS or torch.is_autocast_enabled("cpu"):
        return False
    name = _kernel_of(model)
    return name is not None and kernels.compiled(name) is not None


class Steps:
    """Reads one more token of each sequence, or a few more of one, and says what may come after each.

    Args:
        model: A decoder that `can_step`.
        made: What is prepared for it.
        cache: Keys and values of the tokens before. The steps add to it.
        padding: (row,), how many of its first columns are none of a sequence's.

    Attributes:
        rows: There is room for so many tokens at a time.
        threads: There is room for so many of torch's threads.
    """

    def __init__(self, model: Decoder, made: Prepared, cache: KVCache, padding: Int[Tensor, " row"]) -> None:
        compiled, attention = kernels.compiled("decoding"), kernels.compiled("cached_attention")
        assert compiled is not None and attention is not None
        self._cache, self._kernel = cache, _KERNELS[model.embedding.weight.dtype]
        self._batch = len(padding)
        self.rows = rows = max(self._batch, MOST_OF_ONE)
        self.threads = threads = torch.get_num_threads()
        config = model.config
        heads = config.num_heads + 2 * config.num_kv_heads
        chunks = attention.num_chunks.py_func(cache.max_length)  # not compiled for one call
        rooms = {
            "stream": (rows, config.hidden_size),
            "normal": (threads, rows, config.hidden_size),
            "qkv": (rows, heads, config.head_dim),
            "gathered": (rows, config.num_heads, config.head_dim),
            "up": (rows, (1 + config.gated) * config.intermediate_size),
            "expanded": (rows, config.intermediate_size),
            "scores": (threads, config.num_heads // config.num_kv_heads, attention.CHUNK),
            "partial": (rows, config.num_heads, chunks, 2 + config.head_dim),
            "logits": (rows, config.vocab_size),
        }
        self._rooms = {name: made.room(name, *shape) for name, shape in rooms.items()}
        # A row each: the token, its sequence, its column in the cache, and how many columns are padding.
        self._rows = np.zeros((4, rows), np.int64)
        self._padding = padding.numpy()
        self._layers = np.array(
            [_layer_row(block, buffer) for block, buffer in zip(model.blocks, cache.buffers, strict=True)],
            compiled.LAYER,
        )
        self._tables = _rotation(model, cache.max_length)
        self._plan = np.zeros(1, compiled.PASS)
        self._weights = [each.data for each in model.parameters()]  # read by address: it must not go away
        addresses = {name: room.data_ptr() for name, room in self._rooms.items()}
        addresses |= {
            **{name: row.ctypes.data for name, row in zip(_OF_ROWS, self._rows, strict=True)},
            "layer_table": self._layers.ctypes.data,
            "embedding": model.embedding.weight.data_ptr(),
            "positions": _address(model.positions, "weight"),
            "cos": self._tables[0].data_ptr() if self._tables else 0,
            "sin": self._tables[1].data_ptr() if self._tables else 0,
            "norm": _address(model.norm, "weight"),
            "norm_bias": _address(model.norm, "bias"),
            "head": model.head_weight.data_ptr(),
        }
        sizes = {
            "eps": config.norm_eps,
            "batch": self._batch,
            "capacity": cache.max_length,
            "layers": config.num_layers,
            "hidden": config.hidden_size,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "inner": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "activation": compiled.ACTIVATIONS.index(config.activation),
            "gated": config.gated,
            "centred": config.norm == "layer_norm",
        }
        for name, value in (addresses | sizes).items():
            self._plan[name] = value

    def __call__(self, tokens: list[list[int]]) -> Float[Tensor, "sequence token vocabulary"]:
        """Read as many tokens of each sequence, all together at most `rows`.

        Returns:
            float32 logits of what comes after each token; they stand until the next call.
        """
        count = len(tokens[0])
        rows = len(tokens) * count
        if len(tokens) != self._batch or rows > self.rows or torch.get_num_threads() > self.threads:
            raise ValueError("there is no room for so many tokens or threads")
        sequences = np.repeat(np.arange(self._batch), count)
        columns = np.tile(self._cache.length + np.arange(count), self._batch)
        if columns[-1] >= self._cache.max_length:
            raise ValueError("the cache is full")
        self._rows[:, :rows] = np.ravel(tokens), sequences, columns, self._padding[sequences]
        self._plan["rows"] = rows
        kernels.run(self._kernel, "step", 0, self._plan.ctypes.data)
        self._cache.advance(count)
        return self._rooms["logits"][:rows].view(self._batch, count, -1)


def _layer_row(block: Any, cache: Tensor) -> tuple[int, ...]:
    """Return a layer's row of the kernel's table."""
    attention, feed_forward = block.attention, block.feed_forward
    modules = (
        block.attention_norm, attention.qkv, attention.output, block.feed_forward_norm, feed_forward.up,
        feed_forward.down,
    )  # fmt: skip
    weights = [_address(module, name) for module in modules for name in ("weight", "bias")]
    return (*weights, cache.data_ptr())


def _address(module: nn.Module, name: str) -> int:
    """Return where a parameter lies; 0 where there is none."""
    parameter = getattr(module, name, None)
    return 0 if parameter is None else parameter.data_ptr()


def _rotation(model: Decoder, length: int) -> tuple[Tensor, Tensor] | None:
    if not isinstance(model.positions, RotaryPositions):
        return None
    return model.positions.table(length, model.embedding.weight.device)
