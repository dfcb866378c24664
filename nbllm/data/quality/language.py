"""The language of each document, by py3langid.

Source: Lui and Baldwin 2012, "langid.py: An off-the-shelf language identification tool". FineWeb keeps English from a
probability of .65 on, of another model (fastText's).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError, nearest
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Filter, Rule

MOST_BYTES = 20_000  # of a document that are looked at: more change nothing


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError(
            "The language of a text is told by the package py3langid, which is not installed.",
            hint="pip install 'nbllm[language]'",
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@STEPS.register("language")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(Filter):
    """Keeps documents in the given languages; those without text are in none.

    The first 20,000 bytes of a document are looked at. The probabilities of the languages sum to 1.

    Attributes:
        languages: Codes of ISO 639-1, "en".
        min_probability: That a document is in one of them, at least.
    """

    languages: tuple[str, ...] = ("en",)
    min_probability: float = 0.65

    def __post_init__(self) -> None:
        given: Any = self.languages
        object.__setattr__(self, "languages", (given,) if isinstance(given, str) else tuple(given))
        known = set(_identifier().labels)
        for language in self.languages:
            if language not in known:
                raise UserError(f"No language {language!r} is known.", hint=nearest(language, sorted(known)))
        if not self.languages:
            raise UserError("No language is given.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it demands."""
        name = f"probability of {', '.join(self.languages)}, at least"
        return (Rule(name, "language/probability", "at least", self.min_probability),)

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return the most probable language, and the probability that it is one of those wanted.

        A document without letters has the language "und" and the probability 0.
        """
        identifier = _identifier()
        found, probabilities = [], np.zeros(texts.num_documents)
        for document in range(texts.num_documents):
            text = texts.__getitem__(document)[:MOST_BYTES].decode(errors="replace")
            if not any(map(str.isalpha, text)):
                found.append("und")
                continue
            ranked = identifier.rank(text)
            found.append(ranked[0][0])
            probabilities[document] = sum(share for language, share in ranked if language in self.languages)
        return {
            "language/language": np.array(found, dtype=np.str_),
            "language/probability": probabilities,
        }
