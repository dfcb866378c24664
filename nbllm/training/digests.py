"""Digests of what a checkpoint holds, which do not depend on how it is divided into files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from nbllm.core.base_weights import REFERENCE, BaseWeights
from nbllm.core.errors import WeightsError
from nbllm.core.threads import map_in_threads
from nbllm.models.tensor_file import StoredTensors
from nbllm.models.tensor_shards import OBJECTIVE, OPTIMIZER, shards_of
from nbllm.runs.checkpoint import checksums
from nbllm.training.train_state import OBJECTIVE_FILE, OPTIMIZER_FILE

_THREADS = 4  # hashing frees the interpreter


def weights_digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights: equal for bit-identical weights, however many ranks wrote them.

    It is that of the names of all parameters and the SHA-256 of each. Of a model whose own weights are in the run's
    base, those are represented by the checksums of its files; of a loop that saves no model, all tensors are by theirs.

    Raises:
        OSError: A file cannot be read.
        ValueError: One is damaged.
    """
    return _digest(_weights(checkpoint))


def state_digest(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights and of the state of its optimizer and objective; errors as above."""
    shards = shards_of(checkpoint)
    state: dict[str, str] = {}
    for prefix, file in ((OPTIMIZER, OPTIMIZER_FILE), (OBJECTIVE, OBJECTIVE_FILE)):
        if shards is None:
            held = _stored(checkpoint / file)
        else:
            held = shards.read_all(prefix + name for name in shards.names(prefix))
        state |= {prefix + name.removeprefix(prefix): sha256 for name, sha256 in _sums(held).items()}
    return _digest({"weights": weights_digest(checkpoint), **state})


def _weights(checkpoint: Path) -> dict[str, str]:
    from nbllm.models.loading import read_parameters
    from nbllm.models.peft.checkpoint import read_tensors

    files = checksums(checkpoint)
    base = BaseWeights.referred_to_by(checkpoint)
    if base is not None:
        held = {f"{REFERENCE} {name}": sha256 for name, (sha256, _) in base.files.items()}
        return held | _sums(read_tensors(checkpoint).items())
    try:
        return _sums(itertools.chain(read_parameters(checkpoint), read_tensors(checkpoint).items()))
    except WeightsError:  # no model of ours
        return {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}


def _stored(file: Path) -> Iterator[tuple[str, Tensor]]:
    if not file.exists():
        return
    with StoredTensors(file) as tensors:
        yield from tensors.items()


def _sums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return the SHA-256 of each tensor, several at a time."""
    sums, left = dict[str, str](), iter(tensors)
    while several := list(itertools.islice(left, _THREADS)):
        names, values = zip(*several, strict=True)
        sums.update(zip(names, map_in_threads(_sum, values, threads=_THREADS), strict=True))
    return sums


def _sum(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
