"""Which device and dtype a run computes in."""

from __future__ import annotations

import torch

from nbllm.core.errors import UserError
from nbllm.nn.compute.decisions import bfloat16_ratio, training_dtype
from nbllm.nn.compute.profile import MachineProfile

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES["float8"] = torch.bfloat16  # all but the operands of matmuls


def choose_device(name: str) -> str:
    """Return the device for `name`; "auto" is the GPU where there is one.

    Raises:
        UserError: The named device is not here, or nothing is computed on its kind.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device {name!r}.", hint='Use "auto", "cpu" or "cuda".') from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"Models are trained on the CPU or an NVIDIA GPU, not on {device.type!r}.",
            hint='Use device="auto".',
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Device {name!r} was asked for, but torch sees {_gpus(torch.cuda.device_count())} here.",
            hint='Use device="auto".',
        )
    return name


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else "one GPU" if count == 1 else f"{count} GPUs"


def choose_precision(name: str, profile: MachineProfile) -> tuple[str, str]:
    """Return the precision for `name`, and why it was chosen.

    Args:
        name: "float32", "bfloat16", or "auto": whichever trains faster by the profile.
        profile: Of the device to train on.
    """
    if name != "auto":
        return name, "asked for"
    return training_dtype(
        profile
    ), f"bfloat16 matmuls run at {bfloat16_ratio(profile):.2f} times float32's rate"
