"""A task of choices that the tests of this folder share; it is registered nowhere."""

from __future__ import annotations

import dataclasses
import random

from nbllm.evaluation import METRICS, Likelihood, Task

HOSTILE = "</td><script>alert(1)</script>"
WORDS = "the cat sat on a mat and dog ran to see def return if x = 1".split()


def questions(count=24, seed=0):
    chooser = random.Random(seed)
    return [
        {
            "question": " ".join(chooser.choices(WORDS, k=6)) + (HOSTILE if i == 3 else ""),
            "choices": [f" {word}" for word in chooser.sample(WORDS, 3)],
            "answer": chooser.randrange(3),
            "subject": "abcd"[i % 4],
        }
        for i in range(count)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choosing(Task):
    """Chooses the likeliest of three words."""

    name = "choosing"
    label = "choosing a word"
    unit = "questions"

    @property
    def metrics(self):
        return METRICS["accuracy"](), METRICS["macro_accuracy"]()

    def examples(self, source):
        return questions() if source.data is None else source.data, "written for this test"

    def requests(self, example):
        return [Likelihood(example["question"], choice) for choice in example["choices"]]

    def score(self, example, answers):
        found = [each.log_probability for each in answers]
        chosen = max(range(len(found)), key=found.__getitem__)
        return {
            "question": example["question"],
            "choices": tuple(example["choices"]),
            "predicted": example["choices"][chosen],
            "expected": example["choices"][example["answer"]],
            "correct": chosen == example["answer"],
            "subject": example["subject"],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoosingBySubject(Choosing):
    """The same, its questions clustered."""

    name = "choosing_by_subject"
    cluster = "subject"
