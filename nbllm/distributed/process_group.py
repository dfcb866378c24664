"""The ranks of a run as processes of a torch.distributed group."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nbllm.distributed.ranks import Ranks

MESSAGE_BYTES = 4096  # of a broadcast that takes one message
LENGTH_BYTES = 8
# A paused run decides nothing, so the other ranks wait for rank 0 as long as the pause lasts.
PAUSE = datetime.timedelta(weeks=52)


class ProcessGroup(Ranks):
    """This process among those of the default group of torch.distributed.

    Decisions travel over a gloo group of their own, which waits for as long as it takes; sums go over the default
    group, with nccl where the tensors are on CUDA.
    """

    def __init__(self) -> None:
        self._decisions = dist.new_group(backend="gloo", timeout=PAUSE)

    @property
    def rank(self) -> int:
        """Which of the processes this is."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return dist.get_world_size()

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value, of which JSON must be able to hold it, on every rank."""
        data = b""
        if self.rank == 0:
            data = json.dumps(value).encode()
            data = len(data).to_bytes(LENGTH_BYTES, "little") + data
        first = self._from_rank_zero(data[:MESSAGE_BYTES], MESSAGE_BYTES)
        length = int.from_bytes(first[:LENGTH_BYTES], "little")
        text = first[LENGTH_BYTES : LENGTH_BYTES + length]
        if len(text) < length:  # seldom: a long prompt, say
            text += self._from_rank_zero(data[MESSAGE_BYTES:], length - len(text))
        return json.loads(text)

    def _from_rank_zero(self, data: bytes, size: int) -> bytes:
        message = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8)
        dist.broadcast(message, src=0, group=self._decisions)
        return message.numpy().tobytes()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; all ranks get the same bits."""
        for tensor in tensors:
            if tensor.numel():
                summed = tensor.contiguous()
                dist.all_reduce(summed)
                if summed is not tensor:
                    tensor.copy_(summed)


@contextlib.contextmanager
def joined_group() -> Iterator[ProcessGroup]:
    """Join the processes that the environment names, as torchrun and `nbllm.training.supervisor` set it.

    `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` say who and where, `LOCAL_RANK` which CUDA device is this
    rank's. A process that an error ends does not take leave of the others: they might wait for it.
    """
    device = int(os.environ.get("LOCAL_RANK", "0"))
    if device < torch.cuda.device_count():
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    yield ProcessGroup()
    dist.destroy_process_group()


def lost_a_peer(error: BaseException) -> bool:
    """Say whether an error only shows that another rank has gone: torch names these by type, gloo in the text."""
    if isinstance(error, dist.DistError):
        return True
    signs = ("gloo", "connection closed by peer", "connection reset by peer", "nccl communicator was aborted")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
