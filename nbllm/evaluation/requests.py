"""What a task asks of a model: how likely a text is, or to write one.

Two texts are compared by two `Likelihood` requests, and judged by a `Generate` request: pairs need no kind of
their own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig
from nbllm.lm import Score

if TYPE_CHECKING:
    from nbllm.inference.generation import Generation

GREEDY = SamplingConfig(temperature=0.0)
_CHARACTERS_PER_TOKEN = 4  # about; only for sizes


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt with worked examples, which are left out one by one where the whole does not fit into the context.

    Args:
        text: What is asked.
        shots: The worked examples that stand before it, each with what separates it from the next.
        preamble: What stands before these.
    """

    text: str
    shots: tuple[str, ...] = ()
    preamble: str = ""

    def __str__(self) -> str:
        return self.with_shots(len(self.shots))

    def with_shots(self, count: int) -> str:
        """Return the text with the first `count` worked examples."""
        return f"{self.preamble}{''.join(self.shots[:count])}{self.text}"


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely a continuation is after a context; the answer is a `ContinuationScore`.

    Args:
        context: What stands before; "" asks for the continuation as the beginning of a document.
        continuation: The text whose probability is asked for, with the space that joins it.
    """

    context: str | Prompt
    continuation: str

    def __post_init__(self) -> None:
        """Check that there is something to predict."""
        if not self.continuation:
            raise UserError("An empty continuation has no likelihood.", where="Likelihood")

    @property
    def beginning(self) -> str:
        """The text that is read, of which requests may share a beginning."""
        return f"{self.context}{self.continuation}"

    @property
    def size(self) -> int:
        """Characters to read."""
        return len(self.beginning)


@dataclasses.dataclass(frozen=True)
class DocumentLikelihood:
    """How likely a whole document is, read in windows that slide over it; the answer is a `Score`.

    Args:
        text: The document.
        stride: Tokens by which the window moves over a document longer than the context; `None` is half the
            context.
    """

    text: str
    stride: int | None = None

    def __post_init__(self) -> None:
        """Check the stride."""
        if self.stride is not None and self.stride <= 0:
            raise UserError(f"stride must be greater than 0, not {self.stride}.", where="DocumentLikelihood")

    @property
    def beginning(self) -> str:
        """What requests may share the reading of: nothing."""
        return ""

    @property
    def size(self) -> int:
        """Characters to read."""
        return len(self.text)


@dataclasses.dataclass(frozen=True)
class Generate:
    """To continue a prompt; the answer is a `Generation`, a text that also says how it ended.

    Args:
        prompt: The text to continue.
        sampling: How; greedy unless given.
    """

    prompt: str | Prompt
    sampling: SamplingConfig = GREEDY

    @property
    def beginning(self) -> str:
        """What requests may share the reading of: nothing."""
        return ""

    @property
    def size(self) -> int:
        """Characters to read and, at most, to write."""
        return len(str(self.prompt)) + _CHARACTERS_PER_TOKEN * self.sampling.max_new_tokens


@dataclasses.dataclass(frozen=True)
class ContinuationScore(Score):
    """How probable a model finds a continuation.

    Attributes:
        greedy: Whether each of its tokens is the likeliest one in its place.
    """

    greedy: bool = False


Request = Likelihood | DocumentLikelihood | Generate
if TYPE_CHECKING:
    Answer = Score | Generation
