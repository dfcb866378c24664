"""From a prompt to text: tokenizing, stop strings and streaming around the decoding loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, overload

from nbllm.core.errors import UserError
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_around, added_before
from nbllm.inference.config import SamplingConfig
from nbllm.inference.decoder_tokens import DecoderTokens
from nbllm.inference.detokenizer import Detokenizer, Receive
from nbllm.inference.engine import decode
from nbllm.inference.execution import Execution
from nbllm.inference.generation import Generation, Generations
from nbllm.inference.sequence import Sequence, make_sequences, repeated
from nbllm.inference.streaming import Printer
from nbllm.inference.unicode import check_unicode

if TYPE_CHECKING:
    from nbllm.models.network import GenerativeNetwork


@overload
def generate(
    model: GenerativeNetwork,
    tokenizer: Any,
    prompt: str,
    *,
    stream: bool | Receive = False,
    config: SamplingConfig | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
    execution: Execution | None = None,
    end_ids: Collection[int] = (),
    decoder_tokens: DecoderTokens | None = None,
) -> Generation: ...
@overload
def generate(
    model: GenerativeNetwork,
    tokenizer: Any,
    prompt: list[str],
    *,
    stream: bool | Receive = False,
    config: SamplingConfig | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
    execution: Execution | None = None,
    end_ids: Collection[int] = (),
    decoder_tokens: DecoderTokens | None = None,
) -> Generations: ...
def generate(  # noqa: PLR0913 (each is one thing, and all but two are rarely given)
    model: GenerativeNetwork,
    tokenizer: Any,
    prompt: str | list[str],
    *,
    stream: bool | Receive = False,
    config: SamplingConfig | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
    execution: Execution | None = None,
    end_ids: Collection[int] = (),
    decoder_tokens: DecoderTokens | None = None,
) -> Generation | Generations:
    """Continue a prompt, or each of a list of prompts.

    An interrupt (the notebook's stop button, Ctrl-C) ends the generation and returns what there is.

    Args:
        model: The network.
        tokenizer: Its transformers tokenizer.
        prompt: One text or a list of texts; an empty one starts a document, from the token that documents begin with
            (`nbllm.data.document_bounds`).
        stream: `True` prints the text as it comes; the texts of a list one after another, in order. A
            function is called with each piece (a string with `prompt_index`), at whichever prompt it
            comes.
        config: How to choose tokens, how many, and when to end.
        should_stop: Asked before each step; a true answer ends all.
        lock: Held while the model is used, so that a training thread does not change the weights meanwhile.
        execution: What computes it; `None`: the default of each of its settings.
        end_ids: Tokens that end a text, besides the tokenizer's end token and what ends documents.
        decoder_tokens: Of an encoder-decoder, which reads the prompt and writes another text; `None` of other models.

    Returns:
        The continuation without the prompt, a `str` that also tells how it came about; for a list, or where
        `num_return_sequences` asks for several, a list of them: those of the first prompt, then of the next.

    Raises:
        UserError: A prompt is no text, does not fit the model, or the model's output is not finite; or a beam search
            is asked to stream.
    """
    prompts = _checked(prompt)
    encode = encode_prompt if decoder_tokens is None else encode_source
    made = generate_encoded(
        model,
        tokenizer,
        [(text, encode(tokenizer, text)) for text in prompts],
        stream=stream,
        config=SamplingConfig() if config is None else config,
        should_stop=should_stop,
        lock=lock,
        execution=execution,
        end_ids=end_ids,
        decoder_tokens=decoder_tokens,
    )
    return made[0] if isinstance(prompt, str) and len(made) == 1 else made


def generate_encoded(
    model: GenerativeNetwork,
    tokenizer: Any,
    prompts: list[tuple[str, list[int]]],
    *,
    config: SamplingConfig,
    stream: bool | Receive = False,
    end_ids: Collection[int] = (),
    decoder_tokens: DecoderTokens | None = None,
    **decoding: Any,
) -> Generations:
    """Continue prompts that are encoded already.

    Args:
        model: The network.
        tokenizer: Its transformers tokenizer.
        prompts: Each as text and as token ids.
        config: As for `generate`.
        stream: As for `generate`.
        end_ids: As for `generate`.
        decoder_tokens: As for `generate`.
        **decoding: `should_stop`, `lock` and `execution`, as for `decode`.

    Raises:
        UserError: As `generate`.
    """
    printer = Printer() if stream is True else None
    receive = printer.receive if printer else stream if callable(stream) else None
    if receive is not None and config.num_beams > 1:
        raise UserError(
            "A beam search cannot stream: which text is the best is known only at its end.",
            hint="Leave stream, or use num_beams=1.",
        )
    prompts = repeated(prompts, config)
    sequences = make_sequences(
        [ids for _, ids in prompts],
        config,
        eos_id=tokenizer.eos_token_id,
        end_ids={*end_ids, *document_bounds(tokenizer).end_tokens},
        decoder_tokens=decoder_tokens,
    )
    texts = [Detokenizer(tokenizer, sequence, config, receive) for sequence in sequences]

    def on_change(sequence: Sequence) -> bool:
        text = texts[sequence.index]
        text.catch_up()
        if sequence.stopped_by is not None or text.stop_string is not None:
            text.finish()
            if printer:
                printer.end(sequence.index)
        return text.stop_string is not None

    try:
        decode(model, sequences, config, on_change=on_change, **decoding)
    except KeyboardInterrupt:
        # It may have come between a token and its text: read all tokens again, give out what was not yet.
        texts = [text.restarted() for text in texts]
    for text in texts:
        text.finish()
        if printer:
            printer.end(text.sequence.index)
    return Generations(text.result(given) for text, (given, _) in zip(texts, prompts, strict=True))


def _checked(prompt: object) -> list[str]:
    """Return the prompts as a list, or say what is wrong with them."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise UserError(f"The prompt must be a text or a list of texts, not {type(prompt).__name__}.")
    for i, each in enumerate(prompts):
        if not isinstance(each, str):
            raise UserError(f"A prompt must be a text, not {type(each).__name__}.", where=f"prompt {i}")
        check_unicode(each, "prompt", f"prompt {i}")
    return list(prompts)


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a prompt, with the beginning-of-text token once where the tokenizer adds it."""
    # verbose=False: it would warn of the tokenizer's own longest text; here the model's positions decide.
    ids = [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
    bos = tokenizer.bos_token_id
    if ids[:2] == [bos, bos] and added_before(tokenizer) == [bos]:  # which the prompt spells, too
        ids = ids[1:]
    start = [] if text and ids else document_bounds(tokenizer).start_tokens
    return start or ids


def encode_source(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text for an encoder to read, with those around it."""
    ids = [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
    return ids if added_around(tokenizer)[1] else ids + source_around(tokenizer)[1]


def source_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens before and after a text that an encoder-decoder reads: the tokenizer's, or its end token after.

    So do the objectives that train encoder-decoders.
    """
    before, after = added_around(tokenizer)
    return before, after or document_bounds(tokenizer).end_tokens
