"""Which device and number format a run computes in."""

from __future__ import annotations

import torch

from nbllm.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> str:
    """Return the device for `name`; "auto" is the GPU where there is one.

    Raises:
        UserError: The named device is not here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device {name!r}.", hint='Use "auto", "cpu" or "cuda".') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"Device {name!r} was asked for, but torch sees no GPU here.", hint='Use device="auto".'
        )
    return name


def choose_precision(name: str, device: str) -> tuple[str, str]:
    """Return the precision for `name`, and why it was chosen."""
    if name != "auto":
        return name, "asked for"
    if device.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "the GPU has it") if fast else ("float32", "the GPU has no bfloat16")
    from nbllm.core.device import fast_dtype

    name = str(fast_dtype()).removeprefix("torch.")
    return name, "the faster matrix product, measured here"
