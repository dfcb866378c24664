"""Opening a GGUF file: every tensor expanded straight into the parameter that it fills."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf import quants
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.core.progress import progress
from nbllm.models.gguf.architectures import Source, read_config, tensor_map
from nbllm.models.gguf.blocks import BLOCKS
from nbllm.models.gguf.header import Header, TensorInfo
from nbllm.models.gguf.rope_scaling import FREQUENCIES
from nbllm.models.network import Network, build_without_weights
from nbllm.nn.joined import empty_parameters, side_by_side

_PIECE = 1 << 15  # elements expanded at once: they stay in a core's cache
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_weights(header: Header, *, dtype: torch.dtype | None = None) -> Network:
    """Return the model of a GGUF file whose header has been read, of the architecture llama, gpt2 or qwen2.

    Blocks are expanded piece by piece into the model's own memory, so that opening takes little more than
    the model itself.

    Args:
        header: From `read_header`.
        dtype: What to hold the weights in; None: as stored where all are of one floating type, else float32.

    Raises:
        WeightsError: The file is truncated, hostile, or of an unknown kind; the place and a hint are named.
    """
    if dtype not in (None, *_DTYPES):
        raise UserError(f"dtype is {dtype}.", hint=f"Known: {', '.join(map(str, _DTYPES))}.")
    config = read_config(header)
    sources = tensor_map(config)
    _check_names(sources, header, config.positions)
    try:
        model = build_without_weights(config)
    except UserError as error:
        raise WeightsError(error.what, where=header.path, hint=error.hint) from None
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for source in sources:
        rows = sum(shapes[target][0] for target in source.targets)
        expected = (rows, *shapes[source.targets[0]][1:])
        _check_shape(header.tensors[source.name], expected, header.path)
    dtype = _stored_dtype(header) if dtype is None else dtype
    state = empty_parameters(model, dtype=dtype, device="cpu")
    with open(header.path, "rb") as file:
        total = sum(header.tensors[source.name].nbytes for source in sources)
        with progress(f"opening {header.path.name}", total, "B") as bar:
            for source in sources:
                whole = side_by_side(*[state[target] for target in source.targets])
                assert whole is not None, source  # several are those of joined layers
                _fill(whole, header.tensors[source.name], source.order(len(whole)), file)
                bar.update(header.tensors[source.name].nbytes)
    model.load_state_dict(state, assign=True)
    return model


def _check_names(sources: list[Source], header: Header, positions: str) -> None:
    wanted = {source.name for source in sources}
    for name in sorted(wanted - header.tensors.keys()):
        raise WeightsError(
            f"The file lacks the tensor {name}.",
            where=header.path,
            hint="It is incomplete, or its metadata are those of another model.",
        )
    rotary = {FREQUENCIES} if positions == "rotary" else set()  # `read_config` has read it
    for name in sorted(header.tensors.keys() - wanted - rotary):
        raise WeightsError(
            f"The tensor {name} is surplus.",
            where=header.path,
            hint="The model has parts that nbllm lacks: to drop them could change what it computes.",
        )


def _check_shape(info: TensorInfo, shape: tuple[int, ...], path: Path) -> None:
    if info.shape != shape:
        raise WeightsError(
            f"{info.name} has the shape {list(info.shape)}; the metadata ask for {list(shape)}.", where=path
        )


def _stored_dtype(header: Header) -> torch.dtype:
    found = {BLOCKS[info.type].name for name, info in header.tensors.items() if name != FREQUENCIES}
    return _STORED.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _fill(out: Tensor, info: TensorInfo, order: Tensor | None, file: BinaryIO) -> None:
    """Expand a tensor into memory of ours; `order` says to which of its rows each of the file's belongs."""
    if order is None:
        _expand(out, info, file)
        return
    stored = torch.empty_like(out)
    _expand(stored, info, file)
    out[order] = stored


def _expand(out: Tensor, info: TensorInfo, file: BinaryIO) -> None:
    """Expand a tensor into `out`.

    NumPy alone works here: torch would divide every piece among its threads, whose meeting thousands of times
    takes seconds on a busy machine.
    """
    block, width = BLOCKS[info.type], info.shape[-1]
    target = _rows(out, width)
    limit = torch.finfo(out.dtype).max
    row_bytes = width // block.elements * block.nbytes
    step = max(1, _PIECE // width)
    file.seek(info.offset)
    for start in range(0, len(target), step):
        count = min(step, len(target) - start)
        packed = np.fromfile(file, np.uint8, count * row_bytes)
        if packed.size < count * row_bytes:
            raise WeightsError(
                f"The file ended within {info.name}: it was changed meanwhile.", where=file.name
            )
        with np.errstate(all="ignore"):  # what overflows is found below
            piece = block.expand(packed.reshape(-1, block.nbytes)).reshape(count, width)
        if not np.abs(piece).max() <= limit:  # not a number is not
            raise WeightsError(
                f"{info.name} holds values that are not finite, or too large for {_name(out.dtype)}.",
                where=file.name,
                hint="The file is damaged, or the values need a wider dtype.",
            )
        if out.dtype == torch.bfloat16:
            piece = quants.BF16.quantize_blocks(piece).view(np.int16)
        target[start : start + count] = piece


def _rows(out: Tensor, width: int) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Return a tensor's own memory as NumPy's, (row, width); NumPy has no bfloat16, so as its bits."""
    rows = out.view(-1, width)
    return (rows.view(torch.int16) if out.dtype == torch.bfloat16 else rows).numpy()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
