"""Writing a GGUF file, tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    quants,
)
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.core.io import atomic_file, expand_user, open_regular
from nbllm.models.gguf.architectures import tensor_map, write_config
from nbllm.models.gguf.header import MAGIC
from nbllm.models.gguf.rope_scaling import scaling_tensors
from nbllm.models.gguf.sampling import write_sampling
from nbllm.models.gguf.tokenizer_writing import write_tokenizer
from nbllm.models.network import Network
from nbllm.nn.compiled import parameters_by_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE_TYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_POSITIONS = "position_embd.weight"
_LARGEST_F16 = 65504.0


def save_gguf(
    model: Network,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | str,
    *,
    dtype: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    end_tokens: Sequence[int] = (),
) -> None:
    """Write a model and its tokenizer as one GGUF file, or leave what was at `path` as it is.

    Args:
        model: A model of the family gpt2, llama or qwen2.
        tokenizer: A byte-level BPE tokenizer.
        path: The file.
        dtype: Of the matrices: "F32", "F16" or "Q8_0" (8 bits a number, a scale for 32). Vectors and learned
            positions are F32, as llama.cpp wants them. None: "F16" for a float16 model, else "F32", which
            loses nothing.
        sampling: Settings that are recommended for a chat; of those, temperature, top_k, top_p and min_p have names
            in GGUF.
        end_tokens: Ids of the tokens that end a text: the tokenizer's own and up to two others.

    Raises:
        UserError: GGUF cannot express the model, the tokenizer or a number, `dtype` is none of these, or what is at
            `path` is no GGUF file.
        OSError: The disk is full or the file cannot be written.
    """
    if dtype is None:
        dtype = "F16" if model.dtype == torch.float16 else "F32"
    if dtype not in _FILE_TYPES:
        raise UserError(f"A GGUF is not written as {dtype!r}.", hint=f"Known: {', '.join(_FILE_TYPES)}.")
    matrix_type, file_type = _FILE_TYPES[dtype]
    path = Path(os.path.realpath(expand_user(path)))  # a link is written through
    _refuse_to_replace(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as aside:
        writer = GGUFWriter(aside, model.config.family)
        try:
            for key, value in write_config(model.config).items():
                full = f"{model.config.family}.{key}"
                if isinstance(value, str):
                    writer.add_string(full, value)
                elif isinstance(value, float):
                    writer.add_float32(full, value)
                else:
                    writer.add_uint32(full, value)
            writer.add_type("model")
            writer.add_file_type(file_type)
            writer.add_quantization_version(GGML_QUANT_VERSION)
            write_sampling(writer, sampling or {})
            write_tokenizer(writer, tokenizer, model.config.vocab_size, end_tokens)
            _write_tensors(writer, model, matrix_type)
        finally:
            writer.close()


def _refuse_to_replace(path: Path) -> None:
    """Saving replaces a GGUF file, or an empty one, never anything else that happens to have the name."""
    if path.is_dir():
        raise UserError("There is a folder of this name.", where=path, hint="Save under another name.")
    if path.exists():
        with open_regular(path) as file:
            if file.read(len(MAGIC)) not in (MAGIC, b""):
                raise UserError(
                    "The file is no GGUF file; saving would replace it.",
                    where=path,
                    hint="Save under another name.",
                )


def _write_tensors(writer: GGUFWriter, model: Network, matrix_type: GGMLQuantizationType) -> None:
    """Announce every tensor, then write them one at a time."""
    state = {name: parameter.detach() for name, parameter in parameters_by_name(model).items()}
    planned: list[tuple[str, list[Tensor], Tensor | None, GGMLQuantizationType]] = []
    for source in tensor_map(model.config):
        parts = [state[target] for target in source.targets]
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        plain = len(shape) < 2 or source.name == _POSITIONS
        kind = GGMLQuantizationType.F32 if plain else matrix_type
        block, nbytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise UserError(
                f"{kind.name} packs {block} elements of a row; those of {source.name} have {shape[-1]}.",
                hint='Save with dtype="F16".',
            )
        size = math.prod(shape) // block * nbytes
        writer.add_tensor_info(source.name, shape, np.dtype(np.float32), size, raw_dtype=kind)
        planned.append((source.name, parts, source.order(shape[0]), kind))
    for name, tensor in scaling_tensors(model.config).items():
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), tensor.nbytes)
        planned.append((name, [tensor], None, GGMLQuantizationType.F32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, parts, order, kind in planned:
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        values = whole.to("cpu", torch.float32)
        if kind == GGMLQuantizationType.F32:
            limit = torch.finfo(torch.float32).max
        else:  # an F16 scale of 127 steps, or the number itself
            limit = _LARGEST_F16 * (127 if kind == GGMLQuantizationType.Q8_0 else 1)
        if not bool((values.abs() <= limit).all()):
            raise UserError(f"{name} holds values that {kind.name} cannot hold: too large, or not finite.")
        ordered = values if order is None else values[order]
        writer.write_tensor_data(quants.quantize(ordered.contiguous().numpy(), kind))
