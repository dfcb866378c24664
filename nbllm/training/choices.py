"""What a run is fixed to before it starts: device, dtype, attention backend, threads, how matrices are multiplied.

All follows from the configuration, the model's shape and the machine's profile, and is recorded: a run that resumes or
is replayed computes by its record, whatever the machine is measured to be by then, since sums depend on all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nbllm.core.errors import DataError, UserError
from nbllm.models.decoder import Decoder
from nbllm.nn.attention_backends import choose
from nbllm.nn.compute.decisions import PLAIN, compute_choices, num_threads, use_choices
from nbllm.nn.compute.profile import machine_profile
from nbllm.objectives import OBJECTIVES
from nbllm.training.metrics import check_metrics, reported_metrics
from nbllm.training.optim import check_patterns, is_frozen
from nbllm.training.precision import DTYPES, choose_device, choose_precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.data.token_store import TokenStore
    from nbllm.models.config import ModelConfig
    from nbllm.training.config import TrainConfig

# Settings that the choices follow from: a fork that changes one of them chooses anew.
DECISIVE = frozenset({"device", "precision", "num_threads", "batch_size", "sequence_length"})


def make_choices(config: TrainConfig, shape: ModelConfig) -> dict[str, Any]:
    """Choose for a run of `config` on a model of `shape`, by the machine's profile where the person leaves it open.

    Returns:
        Two entries of the run's record, plain values: `choices`, and the `profile` that they follow from.

    Raises:
        UserError: The device is not here.
    """
    device = choose_device(config.device)
    on_cpu = torch.device(device).type == "cpu"
    profile = machine_profile("cpu" if on_cpu else "cuda")
    precision, because = choose_precision(config.precision, profile)
    compute = compute_choices(profile) if on_cpu else PLAIN
    with use_choices(compute):  # the backends are measured as the run will compute
        attention = _fastest_attention(config, shape, device, DTYPES[precision])
    choices = {
        "device": device,
        "precision": precision,
        "precision_because": because,
        "attention": attention,
        "num_threads": config.num_threads or num_threads(profile),
        **compute.to_dict(),
    }
    return {"choices": choices, "profile": profile.to_dict()}


def check_fits(
    config: TrainConfig,
    shape: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    training: TokenStore,
    held_out: TokenStore | None,
) -> None:
    """Check that model and text can be trained as configured.

    Raises:
        UserError: A sequence is longer than the model has positions, what is to be frozen is no part of the model or
            all of it, a rule looks at what is never reported, or the tokenizer lacks what the objective needs.
        DataError: The text is too short, or of a larger vocabulary than the model's.
    """
    longest = shape.max_positions
    if config.sequence_length > longest:
        raise UserError(
            f"sequence_length is {config.sequence_length}, but the model has {longest} positions.",
            hint=f"Use sequence_length={longest} or less, or a model with more max_positions.",
        )
    _check_frozen(config.freeze, shape)
    for rule in config.rules:
        check_metrics(rule, reported_metrics(OBJECTIVES[config.objective], evaluates=held_out is not None))
    objective = OBJECTIVES[config.objective].for_tokenizer(tokenizer)
    needed = {training: objective.window_length(config.sequence_length)}
    if held_out is not None:
        needed[held_out] = objective.overlap + 1
    for store, least in needed.items():
        if store.num_tokens < least:
            raise DataError(
                f"The text has {store.num_tokens} tokens, too few: at least {least} are needed.",
                where=store.path,
                hint="Give more text, or a shorter sequence_length.",
            )
        if store.vocab_size > shape.vocab_size:
            raise DataError(
                f"The tokens come from a vocabulary of {store.vocab_size}, the model has {shape.vocab_size}.",
                where=store.path,
                hint="Pack the text with the model's own tokenizer.",
            )


def _check_frozen(patterns: tuple[str, ...], shape: ModelConfig) -> None:
    if not patterns:
        return
    names = [name for name, _ in Decoder.without_weights(shape).named_parameters()]
    check_patterns(names, patterns)
    if all(is_frozen(name, patterns) for name in names):
        raise UserError("Everything is frozen: nothing would be left to train.", hint="Freeze less.")


def _fastest_attention(config: TrainConfig, shape: ModelConfig, device: str, dtype: torch.dtype) -> str:
    query, key = (
        torch.zeros(
            config.batch_size, heads, config.sequence_length, shape.head_dim, dtype=dtype, device=device
        ).requires_grad_()
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    return choose(query, key, causal=True, mask=None)
