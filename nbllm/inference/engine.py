"""The generation loop: token ids in, token ids out.

The scheduler chooses a step, a model runner computes its logits, the sampler chooses tokens from them, and these are
appended, until every sequence has ended; with `num_beams`, beam search takes the place of scheduler and sampler. A
sequence gets the tokens that it would get alone: padding is masked and takes no position, and its random numbers are
its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch

from nbllm.core.errors import UserError
from nbllm.inference.beam_search import BeamSearch
from nbllm.inference.config import SamplingConfig
from nbllm.inference.decoder_tokens import DecoderTokens
from nbllm.inference.execution import Execution
from nbllm.inference.runners.base import ModelRunner
from nbllm.inference.sampler import Sampler
from nbllm.inference.scheduler import Scheduler
from nbllm.inference.sequence import Sequence, make_sequences, repeated
from nbllm.inference.workspace import workspace_of

if TYPE_CHECKING:
    from nbllm.models.encoder_decoder import EncoderDecoder
    from nbllm.models.network import GenerativeNetwork

# Called with the prompt's index and each new token; a true answer ends the sequence ("stop").
OnToken = Callable[[int, int], bool | None]


def generate_ids(  # noqa: PLR0913 (each is one thing, and all but four are rarely given)
    model: GenerativeNetwork,
    prompts: list[list[int]],
    config: SamplingConfig,
    *,
    eos_id: int | None,
    decoder_tokens: DecoderTokens | None = None,
    on_token: OnToken | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
    execution: Execution | None = None,
) -> list[list[int]]:
    """Continue prompts of token ids: `make_sequences`, then `decode`.

    Args:
        model: The decoder.
        prompts: Token ids, at least one each; as many texts of each as `config.num_return_sequences` says.
        config: How to choose, how long, what to do when the positions are full. Stop strings need text: they
            are for `nbllm.inference.generate`, and refused here.
        eos_id: The token that ends a sequence, or `None`.
        decoder_tokens: Of an encoder-decoder, which reads the prompts; `None` of any other model.
        on_token: Called with the text's index and each new token; a true answer ends that sequence. Not for a beam
            search, whose tokens are known only at its end.
        should_stop: Asked before each token; a true answer ends all.
        lock: Held throughout.
        execution: What computes it; `None`: the default of each of its settings.

    Returns:
        The new tokens of each text, without the end token.

    Raises:
        UserError: As `make_sequences` and `decode`; or `config` has stop strings, or beams and there is `on_token`.
        KeyboardInterrupt: The person interrupted.
    """
    if config.stop:
        raise UserError(
            "stop strings need a tokenizer, and generate_ids has none.",
            hint="use nbllm.inference.generate, or end a sequence from on_token",
        )
    if on_token is not None and config.num_beams > 1:
        raise UserError("on_token is not for a beam search: its tokens are known only at its end.")
    sequences = make_sequences(
        repeated(prompts, config), config, eos_id=eos_id, decoder_tokens=decoder_tokens
    )

    def on_change(sequence: Sequence) -> bool | None:
        if on_token is None or sequence.stopped_by == "eos":
            return False
        return on_token(sequence.index, sequence.tokens[-1])

    decode(
        model, sequences, config, on_change=on_change, should_stop=should_stop, lock=lock, execution=execution
    )
    return [sequence.tokens for sequence in sequences]


def decode(
    model: GenerativeNetwork,
    sequences: list[Sequence],
    config: SamplingConfig,
    *,
    on_change: Callable[[Sequence], bool | None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
    num_alternatives: int = 0,
    execution: Execution | None = None,
) -> None:
    """Continue `sequences` in place until each has ended.

    Args:
        model: The decoder; its train/eval modes are restored.
        sequences: From `make_sequences`; of a beam search, `config.num_return_sequences` in a row of each prompt.
        config: How to choose, how long, what to do when the positions are full.
        on_change: Called with a sequence after each token, its end token too; a true answer ends it ("stop"). In a beam
            search, called once it has its text, and not asked.
        should_stop: Asked before each token; a true answer ends all ("caller").
        lock: Held throughout, so that nobody changes the weights meanwhile.
        num_alternatives: Above 0, the sequences are given their tokens' `probabilities`, with so many alternatives; not
            in a beam search.
        execution: What computes it; `None`: the default of each of its settings.

    Raises:
        UserError: A prompt does not fit the model's positions or vocabulary, or the model's output is not
            finite.
        KeyboardInterrupt: The person interrupted; `sequences` hold what there is, marked "interrupt".
    """
    _check_prompts(model, sequences, config)
    execution = Execution() if execution is None else execution
    execution.prepare(model)  # before the lock is taken and anything is streamed
    begin = time.perf_counter()

    def accept(sequence: Sequence, token: int) -> None:
        scheduler.append(sequence, token)
        sequence.seconds = time.perf_counter() - begin
        if on_change is not None and on_change(sequence):
            sequence.stopped_by = "stop"

    def finish(sequence: Sequence) -> None:
        sequence.seconds = time.perf_counter() - begin
        if on_change is not None:
            on_change(sequence)

    try:
        with (
            contextlib.nullcontext() if lock is None else lock,
            _evaluating(model),
            torch.inference_mode(),
            workspace_of(model) as workspace,
        ):
            make_runner = execution.runner_for(model)
            if config.num_beams > 1:
                search = BeamSearch(
                    sequences,
                    config,
                    max_positions=model.context_length,
                    vocab_size=model.config.vocab_size,
                    make_cache=lambda rows, length: workspace.cache(model, rows, length),
                    runner=make_runner(model, workspace),
                )
                search.run(finish, should_stop)
                return
            scheduler = Scheduler(
                sequences,
                config,
                max_positions=model.context_length,
                make_cache=lambda batch_size, length: workspace.cache(model, batch_size, length),
                make_drafter=execution.drafter_for(make_runner),
            )
            _run(
                scheduler,
                make_runner(model, workspace),
                Sampler(config, num_alternatives),
                accept,
                should_stop,
            )
    except KeyboardInterrupt:
        for sequence in sequences:
            sequence.stopped_by = sequence.stopped_by or "interrupt"
        raise


def _run(
    scheduler: Scheduler,
    runner: ModelRunner,
    sampler: Sampler,
    accept: Callable[[Sequence, int], None],
    should_stop: Callable[[], bool] | None,
) -> None:
    """Schedule, run, sample, accept, until all sequences have ended."""

    def asked_to_stop() -> bool:
        if should_stop is None or not should_stop():
            return False
        scheduler.end_all("caller")
        return True

    while scheduler.has_unfinished and not asked_to_stop():
        step = scheduler.schedule()
        logits, sequences = runner.run(step), step.batch.sequences
        # The token after the newest, then as long as a draft token was the one chosen, the one after that.
        for place, draft_token in enumerate([*step.draft, None]):
            tokens = sampler(logits[:, place], sequences)
            for sequence, token in zip(sequences, tokens, strict=True):
                if sequence.stopped_by is None:
                    accept(sequence, token)
            rejected = tokens != [draft_token] or sequences[0].stopped_by is not None
            if rejected or asked_to_stop():
                break


def _check_prompts(model: GenerativeNetwork, sequences: list[Sequence], config: SamplingConfig) -> None:
    vocabulary, limit = model.config.vocab_size, model.context_length
    for sequence in sequences:
        read = sequence.prompt if sequence.source is None else sequence.source
        if not all(0 <= token < vocabulary for token in read):
            raise UserError(
                f"The prompt holds a token beyond the model's vocabulary of {vocabulary}.",
                where=f"prompt {sequence.index}",
                hint="use the tokenizer that belongs to this model; where tokens were added to it, lm.resize()",
            )
        can_slide = sequence.source is None
        most = limit if can_slide else cast("EncoderDecoder", model).longest_source
        if (config.overflow == "stop" or not can_slide) and most is not None and len(read) > most:
            raise UserError(
                f"The prompt has {len(read)} tokens; the model has positions for {most}.",
                where=f"prompt {sequence.index}",
                hint="shorten it" + ', or pass overflow="slide" to continue from its end' * can_slide,
            )


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and each back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
