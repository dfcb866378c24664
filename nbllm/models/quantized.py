"""Networks whose linear layers are held in 4 bits (NF4): made, undone, and kept beside a model's weights.

A model directory holds the weights with the values that they have in 4 bits, so that transformers opens it, and in
`nf4.safetensors` the codes and scales themselves, so that it is opened here as it was, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.tensor_writing import write_tensors
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.linear import Linear
from nbllm.nn.nf4_linear import BUFFERS, NF4Linear, hold_in_nf4, put_nf4, release_from_nf4

NF4_FILE = "nf4.safetensors"
_BLOCK_SIZE = "block_size"


def quantized_layers(model: nn.Module) -> dict[str, NF4Linear]:
    """Return the layers that are held in 4 bits, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NF4Linear)}


def quantize_layers(model: nn.Module, *, block_size: int = 64, double_quantization: bool = True) -> None:
    """Hold the linear layers of a network's blocks in NF4 from now on; embedding and head stay as they are.

    Args:
        model: The network.
        block_size: Weights that share a scale.
        double_quantization: Whether the scales are quantized too.

    Raises:
        UserError: There is no such layer, or a weight is not finite.
    """
    layers = {
        name: module for name, module in model.named_modules() if type(module) is Linear and "blocks." in name
    }
    if not layers:
        raise UserError("The model has no linear layers that are not quantized yet.")
    for name, layer in layers.items():
        if not layer.weight.is_meta and not layer.weight.isfinite().all():
            raise UserError("A weight is not finite, and cannot be quantized.", where=name)
    for layer in layers.values():
        hold_in_nf4(layer, block_size=block_size, double=double_quantization)


def dequantize_layers(model: nn.Module) -> None:
    """Hold all weights as ordinary numbers again, with the values that they have in 4 bits."""
    for layer in quantized_layers(model).values():
        release_from_nf4(layer)
    for module in model.modules():
        if isinstance(module, JoinedLinears):
            module.join()


def weights_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layers in 4 bits, by the names that they have as parameters."""
    return {f"{name}.weight": layer.weight for name, layer in quantized_layers(model).items()}


def write_quantized(model: nn.Module, folder: Path) -> None:
    """Write codes and scales of a model's layers into a folder, if it has layers in 4 bits."""
    layers = quantized_layers(model)
    if layers:
        sizes = {layer.block_size for layer in layers.values()}
        assert len(sizes) == 1, "all layers have one block size"
        write_tensors(_state(layers), folder / NF4_FILE, {_BLOCK_SIZE: str(sizes.pop())})


def read_quantized(model: nn.Module, folder: Path) -> None:
    """Let a model's layers hold the codes and scales that `write_quantized` has written, if it has.

    Raises:
        WeightsError: The file is damaged, or another model's.
    """
    path = folder / NF4_FILE
    if not path.exists():
        return
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(safe_open(path, "pt"))
            state = {name: file.get_tensor(name) for name in file.keys()}
            block_size = int((file.metadata() or {})[_BLOCK_SIZE])
        install_quantized(model, state, block_size)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"The weights in 4 bits cannot be read: {error!r}", where=path) from error


def install_quantized(model: nn.Module, state: Mapping[str, Tensor], block_size: int) -> None:
    """Let layers of a model hold codes and scales of these names.

    Raises:
        ValueError: They do not fit.
        AttributeError: There is no such layer.
        KeyError: One is missing.
    """
    for name in dict.fromkeys(key.rpartition(".")[0] for key in state):
        layer = model.get_submodule(name)
        codes, scales, group_scales = (state[f"{name}.{kind}"] for kind in BUFFERS)
        if type(layer) is not Linear:
            raise ValueError(f"{name} is no linear layer")
        blocks = -(-layer.weight.numel() // block_size)
        if len(codes) * 2 != blocks * block_size or len(scales) != blocks:
            raise ValueError(f"{name} has another shape")
        device = layer.weight.device
        put_nf4(layer, [each.to(device) for each in (codes, scales, group_scales)], block_size)


def quantized_state(model: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Return copies of codes and scales, by name, and the block size; nothing of a model without layers in 4 bits."""
    layers = quantized_layers(model)
    size = next(iter(layers.values())).block_size if layers else 0
    return {name: tensor.clone() for name, tensor in _state(layers).items()}, size


def _state(layers: Mapping[str, NF4Linear]) -> dict[str, Tensor]:
    return {
        f"{name}.{kind}": getattr(layer, kind).detach() for name, layer in layers.items() for kind in BUFFERS
    }
