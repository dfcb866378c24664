"""What a run is fixed to before it starts: device, dtype, attention backend, threads, how matrices are multiplied.

All follows from the configuration, the model's shape and the machine's profile, and is recorded: a run that resumes or
is replayed computes by its record, whatever the machine is measured to be by then, since sums depend on all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nbllm.nn.attention_backends import choose
from nbllm.nn.compute.decisions import PLAIN, compute_choices, num_threads, use_choices
from nbllm.nn.compute.profile import machine_profile
from nbllm.nn.float8 import check_float8
from nbllm.training.precision import DTYPES, choose_device, choose_precision

if TYPE_CHECKING:
    from nbllm.models.config import ModelConfig
    from nbllm.training.config import TrainConfig

# Settings that the choices follow from: a fork that changes one of them chooses anew.
DECISIVE = frozenset({"device", "precision", "num_threads", "batch_size", "sequence_length"})


def make_choices(config: TrainConfig, shape: ModelConfig, *, processes: int = 1) -> dict[str, Any]:
    """Choose for a run of `config` on a model of `shape`, by the machine's profile where the person leaves it open.

    Args:
        config: The run's settings.
        shape: The model's.
        processes: How many processes of a machine train the run; they share its cores.

    Returns:
        Two entries of the run's record, plain values: `choices`, and the `profile` that they follow from.

    Raises:
        UserError: The device is not here.
    """
    device = choose_device(config.device)
    on_cpu = torch.device(device).type == "cpu"
    profile = machine_profile("cpu" if on_cpu else "cuda")
    precision, because = choose_precision(config.precision, profile)
    if precision == "float8":
        check_float8(device)
    compute = compute_choices(profile) if on_cpu else PLAIN
    with use_choices(compute):  # the backends are measured as the run will compute
        attention = _fastest_attention(config, shape, device, DTYPES[precision])
    choices = {
        "device": device,
        "precision": precision,
        "precision_because": because,
        "attention": attention,
        "num_threads": config.num_threads or max(1, num_threads(profile) // processes),
        **compute.to_dict(),
    }
    return {"choices": choices, "profile": profile.to_dict()}


def _fastest_attention(config: TrainConfig, shape: ModelConfig, device: str, dtype: torch.dtype) -> str:
    query, key = (
        torch.zeros(
            config.batch_size, heads, config.sequence_length, shape.head_dim, dtype=dtype, device=device
        ).requires_grad_()
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    return choose(query, key, causal=True, mask=None)
