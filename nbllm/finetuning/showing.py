"""Which tokens of an example are trained, to be looked at before anything is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nbllm.core.terminal import visible
from nbllm.finetuning.alignment.preferences import read_pairs
from nbllm.finetuning.examples import Example
from nbllm.finetuning.layouts import read_example
from nbllm.finetuning.tokens import tokenize

if TYPE_CHECKING:
    from nbllm.lm import LM

_OF_PAIRS = {"chosen", "rejected", "completions", "ranked"}  # fields


@dataclasses.dataclass(frozen=True)
class TrainedTokens:
    """The tokens of an example; those that are trained are marked.

    Attributes:
        texts: Of each token.
        trained: Whether each is trained.
    """

    texts: tuple[str, ...]
    trained: tuple[bool, ...]

    def __repr__(self) -> str:
        runs: list[tuple[bool, str]] = []
        for text, trained in zip(self.texts, self.trained, strict=True):
            if runs and runs[-1][0] == trained:
                runs[-1] = (trained, runs[-1][1] + text)
            else:
                runs.append((trained, text))
        shown = "".join(f"[[{visible(text)}]]" if trained else visible(text) for trained, text in runs)
        return f"{shown}\n{sum(self.trained)} of {len(self.trained)} tokens are trained: those in [[ ]]."

    def _repr_html_(self) -> str:
        from nbllm.core.html import escape, fragment

        parts = [
            f"<mark>{escape(text)}</mark>" if trained else f"<span>{escape(text)}</span>"
            for text, trained in zip(self.texts, self.trained, strict=True)
        ]
        count = f"<p>{sum(self.trained)} of {len(self.trained)} tokens are trained: the marked ones.</p>"
        return fragment(f"<pre style='white-space:pre-wrap'>{''.join(parts)}</pre>{count}")


@dataclasses.dataclass(frozen=True)
class PairTokens:
    """The tokens of both answers of a pair; those that are compared are marked.

    Attributes:
        chosen: Of the better answer, with what it answers.
        rejected: Of the other.
    """

    chosen: TrainedTokens
    rejected: TrainedTokens

    def __repr__(self) -> str:
        return f"chosen\n{self.chosen!r}\n\nrejected\n{self.rejected!r}"

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment

        return fragment(
            f"<h4>Chosen</h4>{self.chosen._repr_html_()}<h4>Rejected</h4>{self.rejected._repr_html_()}"
        )


def show(example: object, lm: LM, *, train_on: str = "assistant") -> TrainedTokens | PairTokens:
    """Return the tokens of an example, or of a pair of answers, as they would be trained.

    Args:
        example: In one of the layouts of `nbllm.finetuning.layouts`, or of `nbllm.finetuning.alignment.preferences`; of
            several pairs that it holds the first is shown.
        lm: The model whose tokenizer and template are used.
        train_on: As for `nb.finetune`.

    Raises:
        DataError: The example cannot be read or rendered.
    """
    if isinstance(example, Mapping) and _OF_PAIRS & example.keys():
        pair = read_pairs(example)[0]
        return PairTokens(*(_tokens(each, lm, "assistant") for each in (pair.chosen, pair.rejected)))
    return _tokens(read_example(example), lm, train_on)


def _tokens(example: Example, lm: LM, train_on: str) -> TrainedTokens:
    made = tokenize(lm.tokenizer, example, train_on=train_on)
    texts = (str(lm.tokenizer.decode([token])) for token in made.tokens.tolist())
    return TrainedTokens(tuple(texts), tuple(made.trained.tolist()))
