"""The contract of an objective: it makes batches of raw windows of tokens, and computes the loss of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nbllm.core.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nbllm.objectives.example import Example
    from nbllm.objectives.isolation import Isolation

IGNORED = -100  # the target of what is not predicted

Network = TypeVar("Network")

Batch: TypeAlias = Mapping[str, Tensor]
"""Tensors by name ("inputs", "targets", ...). Which there are is between an objective's `batch` and its `loss`; the
first dimension of each is the batch."""

Rows: TypeAlias = Mapping[str, NDArray[Any]]
"""Columns of rows of examples by name, (batch, ...) each."""


class Objective(ABC, Generic[Network]):
    """What a network is trained for. A subclass is one file in `nbllm/objectives` that registers itself.

    An objective holds no state that training changes, but for what `state_tensors` returns. All its randomness comes
    from the generator that `batch` is given, so that a run that resumes or is replayed makes the same batches again.

    Attributes:
        overlap: Tokens at the start of a window that are read but not predicted: the windows of a text overlap by so
            many, and each token is predicted once.
        needs: What a network must be able to do (`models.network.VERBS`) to be trained so; `None`: any network is.
        counts_every_token: Whether the loss is the negative log-likelihood of every token of the text but the first,
            and so a code length: bits per byte can then be computed from it.
        special_tokens: Those that a tokenizer must have, each with all names that it may have; the first is the one
            by which `nbllm.objectives.add_tokens` adds it.
        can_isolate: Whether documents that share a window can be kept from seeing each other (`isolate`).
        loss_unit: What its loss is counted in; "": what has no unit.
        metrics: Names of what `loss` measures besides (`objectives.measures.measure`); a run reports the mean of each.
        sources: Names of the data sets that a batch's rows come from, where they are several.
        settings: What can be given to `nb.train` by name and changed while a run goes on: `runs.settings.Setting`s with
            their defaults; the optimizer's names are taken.
        options: What can be given by name and is fixed from then on: the default of each, a text, a number or a truth
            value.
        one_pass: Whether its loss reads the network once for a batch, as pipeline parallelism asks for.
        stepper: The kind of `training.step.Stepper` that takes a run's steps, where it is another.
        values: What `configure` was given.
        only_examples: Whether it learns from rows of examples (`data.sample_store`) alone, and not from plain text.
    """

    overlap: ClassVar[int] = 0
    needs: ClassVar[str | None] = None
    counts_every_token: ClassVar[bool] = False
    special_tokens: ClassVar[tuple[tuple[str, ...], ...]] = ()
    can_isolate: ClassVar[bool] = False
    loss_unit: ClassVar[str] = "nats/token"
    metrics: ClassVar[tuple[str, ...]] = ()
    sources: tuple[str, ...] = ()
    only_examples: ClassVar[bool] = False
    settings: ClassVar[tuple[Any, ...]] = ()
    options: ClassVar[Mapping[str, str | float | bool]] = {}
    one_pass: ClassVar[bool] = True
    stepper: ClassVar[type[Any] | None] = None
    values: Mapping[str, Any] = {}
    isolation: Isolation | None = None

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer: the place to look up special tokens such as a mask.

        Raises:
            UserError: The tokenizer lacks a token that the objective needs.
        """
        return cls()

    def window_length(self, sequence_length: int) -> int:
        """Return how many raw tokens make one sequence of `sequence_length` tokens for the network."""
        return sequence_length + self.overlap

    def num_positions(self, sequence_length: int) -> int:
        """Return the positions that a decoder needs which reads in one sequence all that an encoder-decoder reads."""
        return sequence_length

    def configure(self, values: Mapping[str, Any]) -> None:
        """Set what the next losses are computed with: each of `settings` and `options` by name.

        Raises:
            UserError: A value makes no sense.
        """
        self.values = values

    def begin_with(self, network: Network) -> None:
        """Take what is needed of a network that no step was taken with: a reference, for instance.

        Called at the start of a run. Where a run goes on, `load_state_tensors` is called instead, if the objective has
        such tensors.
        """

    def compared_with(self) -> AbstractContextManager[None] | None:
        """Return a context in which the network is what samples are shown beside, a reference; None: nothing."""
        return None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold of it beside the weights, by name; nothing unless it has state."""
        return {}

    def load_state_tensors(self, tensors: Mapping[str, Tensor], network: Network) -> None:
        """Put back what `state_tensors` returned; `network` is as it was then."""

    def isolate(self, end: int, *, begins_next: bool) -> None:
        """Let each token see only those of its own document from now on; only where `can_isolate`.

        Args:
            end: The token that ends a document.
            begins_next: Whether the first token of the next document is predicted from it.
        """
        from nbllm.objectives.isolation import Isolation

        assert self.can_isolate
        self.isolation = Isolation(end, begins_next)

    @abstractmethod
    def batch(self, windows: Any, rng: np.random.Generator) -> Batch:
        """Return what the network is given and what it should say, on the CPU.

        Args:
            windows: (batch, window) raw tokens; `window_length` of them, or fewer at the end of a text, but more than
                `overlap`. Of a `data.sample_store.SampleStore`, its columns by name, (batch, ...) each.
            rng: The only source of randomness.
        """

    @abstractmethod
    def loss(self, network: Network, batch: Batch) -> tuple[Tensor, float]:
        """Return the loss of a batch, summed over what counts (tokens, pairs, ...), and how many count.

        A sum and a count, not a mean: accumulation and ranks change nothing when the sum over all batches of a step
        is divided once by the count of all of them.

        Args:
            network: The network, in its own dtype.
            batch: What `batch` returned, on the network's device.

        Returns:
            A float32 scalar in nats, and the count, or the sum of the weights where what counts is weighted; it may
            be 0, for a batch in which nothing counts.
        """

    @classmethod
    def show(cls, text: str, *, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Example:
        """Return what a network sees of a text, and what it must predict, to be looked at.

        Args:
            text: The text.
            tokenizer: What turns it into tokens.
            seed: Of what is drawn at random.

        Raises:
            UserError: The text has too few tokens, or the tokenizer lacks one that the objective needs.
        """
        from nbllm.objectives.example import make_example

        return make_example(cls.for_tokenizer(tokenizer), text, tokenizer, seed)


OBJECTIVES: Registry[type[Objective[Any]]] = Registry("objective", "nbllm.finetuning.alignment")
