"""Random streams that depend on nothing but their names: no global random state is read or written."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the stream `names` under `seed`: the same on every machine and process."""
    text = repr((seed, *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """Return a CPU torch generator seeded for the stream `names` under `seed`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))
