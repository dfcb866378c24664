"""The task "translation": sentences translated from one language into another, in the layout of WMT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nbllm.core.errors import UserError
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.bleu import Bleu
from nbllm.evaluation.metrics.chrf import ChrF
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer

NAMES = {
    "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "et": "Estonian", "fi": "Finnish", "fr": "French",
    "gu": "Gujarati", "hi": "Hindi", "ja": "Japanese", "kk": "Kazakh", "lt": "Lithuanian", "lv": "Latvian",
    "ro": "Romanian", "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian", "zh": "Chinese",
}  # fmt: skip


@TASKS.register("translation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(OpenAnswer):
    """Sentences to translate; a translation ends with its line. BLEU and chrF are sacrebleu's.

    Data: the column translation with a text for each language ({"de": "...", "en": "..."}), as the hub has WMT
    ("wmt/wmt16"), or a column for each language; or two plain text files whose lines belong together, as WMT and
    sacrebleu have them: a folder with newstest2014.de and newstest2014.en, newstest2014-deen-src.de and
    newstest2014-deen-ref.en, or one of the two files, which may also be named wmt14.de-en.src and wmt14.de-en.ref.

    Args:
        source_language: From which: "de", "fr", ...
        target_language: Into which.
    """

    name = "translation"
    label = "translation"
    unit = "sentences"
    stop = ("\n",)
    separator = "\n\n"
    layout = Layout("translation", ("test", "newstest", "validation"), ("train", "validation", "dev"))

    source_language: str = "de"
    target_language: str = "en"
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        """Check the languages."""
        super().__post_init__()
        for language in (self.source_language, self.target_language):
            if language not in NAMES:
                raise UserError(
                    f"There is no name for the language {language!r}.", hint=f"Known: {', '.join(NAMES)}."
                )

    def published(self) -> Layout:
        """Return the layout; on the hub the pair of languages is the subset."""
        others = [each for each in (self.source_language, self.target_language) if each != "en"]
        return dataclasses.replace(
            self.layout,
            subset=f"{others[0]}-en" if others else "",
            languages=(self.source_language, self.target_language),
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """BLEU, with the tokenizer of the target language, and chrF."""
        tokenize = {"zh": "zh", "ja": "char"}.get(self.target_language, "13a")
        return Bleu(tokenize=tokenize), ChrF()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a sentence with its translation."""
        pair = record.inner("translation") if "translation" in record else record
        yield {
            "question": pair.text(self.source_language),
            "references": [pair.text(self.target_language)],
        }

    def question(self, item: Item) -> str:
        """Return the sentence."""
        return f"{NAMES[self.source_language]}: {item['question']}\n{NAMES[self.target_language]}:"
