"""Functions that find the names of people: by Microsoft's Presidio, or by a model that tags tokens."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.io import expand_user

PERSON = ("PER", "PERSON")  # what models call a person's name
Spans = list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class PresidioNames:
    """Finds names with Presidio's analyzer and a spaCy model; nothing is downloaded.

    Args:
        model: A spaCy model with named entities, installed as a package, or its folder.
        language: Its language.
        score: How sure Presidio must be, 0 to 1.

    Raises:
        UserError: Presidio or the model is not here.

    Source: Microsoft Presidio, https://microsoft.github.io/presidio.
    """

    model: str = "en_core_web_sm"
    language: str = "en"
    score: float = 0.5

    def __post_init__(self) -> None:
        if importlib.util.find_spec("presidio_analyzer") is None:
            raise UserError("Presidio is not installed.", hint="pip install 'nbllm[names]'")
        import spacy

        if not (spacy.util.is_package(self.model) or Path(self.model).is_dir()):
            raise UserError(
                f"There is no spaCy model {self.model!r} here.",
                hint=f"`python -m spacy download {self.model}` needs network; model= also takes a folder, and "
                "nb.data.TaggedNames a model of transformers.",
            )

    def __call__(self, text: str) -> Spans:
        """Return where the names of a text begin and end, in characters."""
        found = _analyzer(self.model, self.language).analyze(
            text, self.language, entities=["PERSON"], score_threshold=self.score
        )
        return [(each.start, each.end) for each in found]


@dataclasses.dataclass(frozen=True)
class TaggedNames:
    """Finds names with a token classifier of transformers, such as a BERT that was trained on CoNLL-2003.

    Args:
        model: Its folder, or the name of one that was downloaded before.
        score: How sure it must be, 0 to 1.

    Raises:
        UserError: There is no such model, or none of its labels is PER or PERSON.
    """

    model: str
    score: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        labels = _tagger(self.model).model.config.id2label.values()
        if not any(_kind(label) in PERSON for label in labels):
            raise UserError(
                f"The model {self.model!r} tags no names: its labels are {', '.join(sorted(labels))}.",
                hint="One of them must be PER or PERSON, perhaps after B- and I-.",
            )

    def __call__(self, text: str) -> Spans:
        """Return where the names of a text begin and end, in characters."""
        found = _tagger(self.model)(text)
        return [
            (each["start"], each["end"])
            for each in found
            if _kind(each["entity_group"]) in PERSON and each["score"] >= self.score
        ]


def _kind(label: str) -> str:
    return label.upper().removeprefix("B-").removeprefix("I-")


@functools.lru_cache(maxsize=2)
def _analyzer(model: str, language: str) -> Any:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    engine = SpacyNlpEngine(models=[{"lang_code": language, "model_name": model}])
    engine.load()
    recognizer = SpacyRecognizer(supported_language=language)
    return AnalyzerEngine(
        registry=RecognizerRegistry([recognizer], supported_languages=[language]),
        nlp_engine=engine,
        supported_languages=[language],
    )


@functools.lru_cache(maxsize=2)
def _tagger(model: str) -> Any:
    import transformers

    folder = expand_user(model)
    try:
        # A text longer than the model's positions is read in overlapping pieces.
        return transformers.pipeline(
            "token-classification",
            model=str(folder) if folder.is_dir() else model,
            aggregation_strategy="simple",
            stride=32,
            device="cpu",
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"No token classifier can be loaded from {model!r}.", hint=str(error).splitlines()[0]
        ) from error
