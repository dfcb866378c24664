"""Whether a model and a text can be trained as configured: checked before a run is made."""

from __future__ import annotations

import bisect
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError, listed
from nbllm.core.quantities import size
from nbllm.data.sample_store import SampleStore
from nbllm.models.network import Network, build_without_weights, networks_that_can
from nbllm.objectives import OBJECTIVES, Objective
from nbllm.training.freezing import ParameterNames
from nbllm.training.metrics import check_metrics, reported_metrics
from nbllm.training.objective import make_objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.data.token_store import TokenStore
    from nbllm.models.config import ModelConfig
    from nbllm.training.config import TrainConfig

# Of each network, what `nb.LM.new` makes one of.
_EXAMPLES = {
    "decoder": '"llama"', "prefix_decoder": '"llama", network="prefix_decoder"', "encoder": '"bert"',
    "encoder_decoder": '"t5"',
}  # fmt: skip


def check_fits(
    config: TrainConfig,
    shape: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    training: TokenStore | SampleStore,
    held_out: TokenStore | SampleStore | None,
    *,
    adapter: Collection[str] = (),
) -> None:
    """Check that model and text can be trained as configured; `adapter`: the parameters that the model has beside.

    Raises:
        UserError: The network cannot do what the objective trains it for, a sequence is longer than the model has
            positions, what is to be frozen is no part of the model or all of it, a rule looks at what is never
            reported, or the tokenizer lacks what the objective needs.
        DataError: The text is too short, or of a larger vocabulary than the model's.
    """
    check_network(config, build_without_weights(shape))
    objective = make_objective(config, tokenizer)
    longest = longest_sequence(objective, shape)
    if config.sequence_length > longest:
        both = "" if longest == shape.max_positions else ", for inputs and targets together"
        raise UserError(
            f"sequence_length is {config.sequence_length}, but the model has {shape.max_positions} positions{both}.",
            hint=f"Use sequence_length={longest} or less, or a model with more max_positions.",
        )
    _check_batch(config, shape)
    _check_frozen(config.freeze, shape, adapter)
    sources = [name for store in (training, held_out) for name in getattr(store, "sources", ())]
    reported = reported_metrics(OBJECTIVES[config.objective], evaluates=held_out is not None, sources=sources)
    for rule in config.rules:
        check_metrics(rule, reported)
    if objective.only_examples and not isinstance(training, SampleStore):
        raise UserError(
            f"The objective {config.objective!r} learns from examples that are prepared for it, not from text.",
            hint="nb.finetune(lm, data, method=...) prepares them.",
        )
    needed: dict[TokenStore | SampleStore, int] = {training: objective.window_length(config.sequence_length)}
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


def check_network(config: TrainConfig, network: Network) -> None:
    """Check that a network can learn what it is to be trained for.

    Raises:
        UserError: It cannot; the reason is given.
    """
    needs = OBJECTIVES[config.objective].needs
    if needs is not None and needs not in network.can:
        raise UserError(
            f"This model cannot be trained with objective={config.objective!r}: it is {network.kind}.",
            hint=_what_fits(network, config.objective, needs),
        )
    if config.packing == "isolated" and not network.takes_mask:
        raise UserError(
            f"This model cannot isolate documents: it is {network.kind}.", hint='Leave packing="isolated".'
        )


def longest_sequence(objective: Objective[Any], shape: ModelConfig) -> int:
    """Return the longest `sequence_length` for which a model has positions enough."""
    most = shape.max_positions
    if shape.network == "encoder_decoder" or objective.num_positions(most) <= most:
        return most
    lengths = range(1, most + 1)
    return bisect.bisect_right(lengths, most, key=objective.num_positions)


def _what_fits(network: Network, objective: str, needs: str) -> str:
    """Return which objectives can train such a network, and how a model is made that this objective can train."""
    fitting = [
        name
        for name in OBJECTIVES
        if not OBJECTIVES[name].only_examples and OBJECTIVES[name].needs in (None, *network.can)
    ]
    hints = [f"It can with {listed(fitting)}."] if fitting else []
    able = networks_that_can(needs)
    # The parts of any decoder serve both: with and without a prefix that is read in both directions.
    if network.config.network == "decoder" and "prefix_decoder" in able:
        made = [f'nb.LM.new("{network.config.family}", network="prefix_decoder", ...)']
    else:
        made = [f"nb.LM.new({_EXAMPLES[name]}, ...)" for name in able if name in _EXAMPLES]
    if made:
        hints.append(f"For {objective!r} make the model as {' or '.join(made)}.")
    return " ".join(hints)


def _check_batch(config: TrainConfig, shape: ModelConfig) -> None:
    """Refuse a batch of which not even the input of one layer fits in memory."""
    from nbllm.core.machine import gpus, memory_limit

    needed = 4 * config.batch_size * config.sequence_length * shape.hidden_size
    held = max([memory_limit(), *(gpu["memory_bytes"] for gpu in gpus())])
    if needed > held:
        raise UserError(
            f"A batch of {config.batch_size:,} x {config.sequence_length:,} tokens would take {size(needed)} for the "
            f"input of one layer; this machine has {size(held)} of memory.",
            hint="Use a smaller batch_size, and accumulation for the rest.",
        )


def _check_frozen(patterns: tuple[str, ...], shape: ModelConfig, adapter: Collection[str]) -> None:
    if patterns:
        names = [*(name for name, _ in build_without_weights(shape).named_parameters()), *adapter]
        ParameterNames(names, shape).check_from_start(patterns)
