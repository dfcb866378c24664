"""The decoding loop: token numbers in, token numbers out.

Prompts of different lengths share a batch by padding on the left. The padding is masked and takes no
position, so a sequence gets the tokens that it would get alone. A row that ends leaves the batch and its
cache; when the cache's columns are full, the rows that go on are laid out and read anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.core.seeding import generator
from nbllm.inference.choices import TokenChoice, token_choices
from nbllm.inference.config import SamplingConfig
from nbllm.inference.lookup import Lookup
from nbllm.inference.prepared import Prepared, Steps, can_step, load_kernel, prepared
from nbllm.inference.sampling import choose, penalize_repetition

if TYPE_CHECKING:
    from nbllm.models.decoder import Decoder
    from nbllm.nn.kv_cache import KVCache

# Called with the prompt's index and each new token; a true answer ends the sequence ("stop").
OnToken = Callable[[int, int], bool | None]


@dataclasses.dataclass
class Sequence:
    """One prompt and what was generated for it.

    Args:
        index: Its place among the prompts.
        prompt: Token numbers, at least one.
        generator: What its random numbers come from.
        seed: The seed that the generator was made from.
        tokens: What was generated, without the end token.
        stopped_by: Why it ended; `None` while it goes on.
        start: Where the context begins in prompt and tokens: the sliding window drops what is before.
        seconds: Wall time from the start of the call to its last token.
        choices: How probable each of `tokens` was, and an end token after them, if `decode` was asked to say so.
    """

    index: int
    prompt: list[int]
    generator: torch.Generator
    seed: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    stopped_by: str | None = None
    start: int = 0
    seconds: float = 0.0
    choices: list[TokenChoice] = dataclasses.field(default_factory=list)

    @property
    def context(self) -> list[int]:
        """The tokens that the next one is predicted from."""
        return (self.prompt + self.tokens)[self.start :]

    @property
    def context_length(self) -> int:
        """Number of tokens in the context."""
        return len(self.prompt) + len(self.tokens) - self.start


class _Batch:
    """Rows that share one cache: feeds each its newest tokens and gives the logits of the next."""

    def __init__(self, model: Decoder, rows: list[Sequence], config: SamplingConfig, made: Prepared) -> None:
        self._model, self.rows, self._config, self._made = model, rows, config, made
        self._device = model.head_weight.device
        self._cache: KVCache | None = None
        self._steps: Steps | None = None  # where the kernel serves
        self._chosen = False  # whether that has been found out
        self._lookup: Lookup | None = None
        self._logits = torch.empty(0)  # after the newest token, and after those that were guessed to follow
        self._padding = torch.zeros(len(rows), dtype=torch.int64)
        self._mask: Tensor | None = None
        self._seen: Tensor | None = None

    def next_logits(self) -> Float[Tensor, "batch vocabulary"]:
        """Return float32 logits for the next token of each of `rows`."""
        self._drop_ended()
        full = self._cache is None or self._cache.length == self._cache.max_length
        logits = self._read() if full else self._step()
        if not bool(torch.isfinite(logits.amax(dim=-1)).all()):  # minus infinity is fair: a token ruled out
            raise UserError(
                "The model's output is not finite (NaN or infinity), so no token can be chosen.",
                hint="its weights have diverged or are damaged: go back to an earlier checkpoint",
            )
        if self._config.repetition_penalty != 1:
            assert self._seen is not None
            logits = penalize_repetition(logits, self._seen, self._config.repetition_penalty)
        return logits

    def _drop_ended(self) -> None:
        going = [i for i, row in enumerate(self.rows) if row.stopped_by is None]
        if len(going) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in going]
        if self._cache is not None:
            kept = torch.tensor(going, device=self._device)
            self._cache.select(kept)
            self._forget_steps()
            self._padding = self._padding[kept]
            self._mask = None if self._mask is None else self._mask[kept]
            self._seen = None if self._seen is None else self._seen[kept]

    def _read(self) -> Float[Tensor, "batch vocabulary"]:
        """Lay out the rows and read their contexts into a fresh cache."""
        limit = self._model.config.max_positions
        for row in self.rows:
            if row.context_length > limit:
                row.start += row.context_length - max(1, limit // 2)
        lengths = torch.tensor([row.context_length for row in self.rows], device=self._device)
        columns = int(lengths.max())
        remaining = max(self._config.max_new_tokens - len(row.tokens) for row in self.rows)
        # The last token of a text is never read: nothing is predicted from it.
        length = min(limit, columns + remaining - 1)
        self._cache = self._made.cache(self._model, len(self.rows), length)
        self._forget_steps()
        ids = [[0] * (columns - row.context_length) + row.context for row in self.rows]
        self._padding = columns - lengths
        self._mask = None
        if bool((self._padding > 0).any()):
            column = torch.arange(self._cache.max_length, device=self._device)
            self._mask = column[None, :] >= self._padding[:, None]
        if self._config.repetition_penalty != 1:
            self._seen = self._all_seen()
        return self._forward(torch.tensor(ids, device=self._device))

    def _forget_steps(self) -> None:
        """The rows or their cache are others now."""
        self._steps = self._lookup = None
        self._chosen = False

    def _choose_steps(self) -> Steps | None:
        """Return what reads the newest tokens: None, where it is the model itself."""
        assert self._cache is not None
        if self._steps is not None and self._steps.threads < torch.get_num_threads():
            self._chosen = False
        if not self._chosen:
            serves = can_step(self._model, len(self.rows))
            self._steps = Steps(self._model, self._made, self._cache, self._padding) if serves else None
            self._chosen = True
        return self._steps

    def _step(self) -> Float[Tensor, "batch vocabulary"]:
        """Read each row's newest token."""
        newest = [row.tokens[-1:] for row in self.rows]
        if self._seen is not None:
            self._seen.scatter_(1, torch.tensor(newest, device=self._device), True)
        steps = self._choose_steps()
        if steps is None:
            return self._forward(torch.tensor(newest, device=self._device))
        if len(self.rows) == 1:
            return self._step_ahead(steps, self.rows[0])
        return steps(newest)[:, -1]

    def _step_ahead(self, steps: Steps, row: Sequence) -> Float[Tensor, "1 vocabulary"]:
        """Read the newest token and with it what may follow: where that comes true, it need not be read any more.

        The text is the one that it would be without, as each token's logits are the same to the bit.
        """
        assert self._cache is not None
        token = row.tokens[-1]
        if self._lookup is None:
            self._lookup = Lookup(row.context[:-1])
        if self._lookup.add(token):
            self._cache.advance(1)
            self._logits = self._logits[1:]
            return self._logits[:1]
        guess = self._lookup.guess(min(steps.rows, self._cache.max_length - self._cache.length) - 1)
        self._logits = steps([[token, *guess]])[0]
        self._cache.crop(self._cache.length - len(guess))
        return self._logits[:1]

    def _forward(self, ids: Tensor) -> Float[Tensor, "batch vocabulary"]:
        assert self._cache is not None
        done, count = self._cache.length, ids.shape[1]
        positions = None
        mask = None
        if self._mask is not None:
            column = torch.arange(done, done + count, device=self._device)
            positions = (column[None, :] - self._padding[:, None]).clamp(min=0)
            mask = self._mask[:, : done + count]
        hidden = self._model.hidden(ids, cache=self._cache, positions=positions, attention_mask=mask)
        return self._model.logits(hidden[:, -1]).float()

    def _all_seen(self) -> Tensor:
        seen = torch.zeros(
            len(self.rows), self._model.head_weight.shape[0], dtype=torch.bool, device=self._device
        )
        for i, row in enumerate(self.rows):
            seen[i, torch.tensor(row.prompt + row.tokens, device=self._device)] = True
        return seen


def generate_ids(
    model: Decoder,
    prompts: list[list[int]],
    config: SamplingConfig,
    *,
    eos_id: int | None,
    on_token: OnToken | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> list[list[int]]:
    """Continue prompts of token numbers: `start`, then `decode`.

    Args:
        model: The decoder.
        prompts: Token numbers; an empty prompt begins at the end token.
        config: How to choose, how long, what to do when the positions are full. Stop strings need text: they
            are for `nbllm.inference.generate`, and refused here.
        eos_id: The token that ends a sequence, or `None`.
        on_token: Called with the prompt's index and each new token; a true answer ends that sequence.
        should_stop: Asked before each step; a true answer ends all.
        lock: Held throughout.

    Returns:
        The new tokens of each prompt, without the end token.

    Raises:
        UserError: As `start` and `decode`; or `config` has stop strings.
        KeyboardInterrupt: The person interrupted.
    """
    if config.stop:
        raise UserError(
            "stop strings need a tokenizer, and generate_ids has none.",
            hint="use nbllm.inference.generate, or end a sequence from on_token",
        )
    sequences = start(prompts, config, eos_id=eos_id)

    def on_change(row: Sequence) -> bool | None:
        return on_token is not None and row.stopped_by != "eos" and on_token(row.index, row.tokens[-1])

    decode(model, sequences, config, eos_id=eos_id, on_change=on_change, should_stop=should_stop, lock=lock)
    return [sequence.tokens for sequence in sequences]


def start(prompts: list[list[int]], config: SamplingConfig, *, eos_id: int | None) -> list[Sequence]:
    """Make a sequence of each prompt, with a random stream of its own.

    The stream depends on the seed, the prompt and how often the same prompt came before it in the list: not
    on the other prompts.

    Args:
        prompts: Token numbers; an empty prompt begins at the end token, which separates documents in
            training.
        config: Its `seed`; `None` takes a fresh one for all.
        eos_id: The model's end token.

    Raises:
        UserError: A prompt is empty and there is no end token.
    """
    seed = secrets.randbits(63) if config.seed is None else config.seed
    before: Counter[tuple[int, ...]] = Counter()
    sequences = []
    for index, given in enumerate(prompts):
        if not given and eos_id is None:
            raise UserError(
                "The prompt is empty and the model has no end token to begin from.",
                hint="give a prompt of at least one token",
            )
        prompt = list(given) or [int(eos_id or 0)]
        key = tuple(prompt)
        stream = generator(seed, "generate", key, before[key])
        before[key] += 1
        sequences.append(Sequence(index, prompt, stream, seed))
    return sequences


def decode(
    model: Decoder,
    sequences: list[Sequence],
    config: SamplingConfig,
    *,
    eos_id: int | None,
    on_change: Callable[[Sequence], bool | None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
    num_alternatives: int = 0,
) -> None:
    """Continue `sequences` in place until each has ended.

    Args:
        model: The decoder; its train/eval modes are restored.
        sequences: From `start`.
        config: How to choose, how long, what to do when the positions are full.
        eos_id: The token that ends a sequence, or `None`.
        on_change: Called with a sequence after each token, its end token too; a true answer ends it ("stop").
        should_stop: Asked before each step; a true answer ends all ("caller").
        lock: Held throughout, so that nobody changes the weights meanwhile.
        num_alternatives: Above 0, `choices` of the sequences are filled, with so many alternatives each.

    Raises:
        UserError: A prompt does not fit the model's positions or vocabulary, or the model's output is not
            finite.
        KeyboardInterrupt: The person interrupted; `sequences` hold what there is, marked "interrupt".
    """
    _check_prompts(model, sequences, config)
    load_kernel(model)
    begin = time.perf_counter()
    try:
        with (
            contextlib.nullcontext() if lock is None else lock,
            _evaluating(model),
            torch.inference_mode(),
            prepared(model) as made,
        ):
            for first in range(0, len(sequences), config.batch_size):
                batch = _Batch(model, sequences[first : first + config.batch_size], config, made)
                for row, token in _tokens(batch, should_stop, num_alternatives):
                    _accept(row, token, model, config, eos_id)
                    row.seconds = time.perf_counter() - begin
                    if on_change is not None and on_change(row):
                        row.stopped_by = "stop"
    except KeyboardInterrupt:
        for row in sequences:
            row.stopped_by = row.stopped_by or "interrupt"
        raise


def _tokens(
    batch: _Batch, should_stop: Callable[[], bool] | None, num_alternatives: int
) -> Iterator[tuple[Sequence, int]]:
    """Yield each going row with its next token, step by step, until no row goes on."""
    while any(row.stopped_by is None for row in batch.rows):
        if should_stop is not None and should_stop():
            for row in batch.rows:
                row.stopped_by = row.stopped_by or "caller"
            return
        logits = batch.next_logits()
        chosen = choose(logits, batch._config, [row.generator for row in batch.rows])
        if num_alternatives > 0:
            for row, choice in zip(batch.rows, token_choices(logits, chosen, num_alternatives), strict=True):
                row.choices.append(choice)
        for row, token in zip(batch.rows, chosen.tolist(), strict=True):
            if row.stopped_by is None:
                yield row, token


def _accept(row: Sequence, token: int, model: Decoder, config: SamplingConfig, eos_id: int | None) -> None:
    """Add a token to a row, and end the row where that is the last one."""
    if token == eos_id:
        row.stopped_by = "eos"
        return
    row.tokens.append(token)
    if len(row.tokens) == config.max_new_tokens:
        row.stopped_by = "length"
    elif config.overflow == "stop" and row.context_length > model.config.max_positions:
        row.stopped_by = "context"


def _check_prompts(model: Decoder, sequences: list[Sequence], config: SamplingConfig) -> None:
    vocabulary, limit = model.head_weight.shape[0], model.config.max_positions
    for row in sequences:
        if not all(0 <= token < vocabulary for token in row.prompt):
            raise UserError(
                f"The prompt holds a token beyond the model's vocabulary of {vocabulary}.",
                where=f"prompt {row.index}",
                hint="use the tokenizer that belongs to this model",
            )
        if config.overflow == "stop" and len(row.prompt) > limit:
            raise UserError(
                f"The prompt has {len(row.prompt)} tokens; the model has positions for {limit}.",
                where=f"prompt {row.index}",
                hint='shorten it, or pass overflow="slide" to continue from its end',
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
