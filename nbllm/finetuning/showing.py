"""Which tokens of an example are trained, to be looked at before anything is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from nbllm.core.terminal import visible
from nbllm.finetuning.layouts import read_example
from nbllm.finetuning.tokens import tokenize

if TYPE_CHECKING:
    from nbllm.lm import LM


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


def show(example: object, lm: LM, *, train_on: str = "assistant") -> TrainedTokens:
    """Return the tokens of an example as they would be trained.

    Args:
        example: In one of the layouts of `nbllm.finetuning.layouts`.
        lm: The model whose tokenizer and template are used.
        train_on: As for `nb.finetune`.

    Raises:
        DataError: The example cannot be read or rendered.
    """
    made = tokenize(lm.tokenizer, read_example(example), train_on=train_on)
    texts = (str(lm.tokenizer.decode([token])) for token in made.tokens.tolist())
    return TrainedTokens(tuple(texts), tuple(made.trained.tolist()))
