"""A task of choices: which of several continuations is the likeliest."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation import METRICS, TASKS, Likelihood, Task

QUESTIONS = (
    ("the cat sat on a", ("mat", "dog", "return"), 0, "cats"),
    ("the dog ran to", ("see", "def"), 1, "dogs"),
    ("def", ("return", "cat", "the", "1"), 0, "code"),
    ("if x =", ("1", "naïve"), 0, "code"),
    ("and the", ("dog", "mat", "cat"), 2, "dogs"),
    ("the cat <b>", ("sat", "</td><script>alert(1)</script>"), 1, "cats"),
)


@TASKS.register("endings")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Endings(Task):
    """Chooses an ending.

    Args:
        per_byte: Whether log-probabilities are divided by the choice's length.
    """

    name = "endings"
    label = "choosing an ending"
    unit = "questions"
    cluster = "subject"

    per_byte: bool = False

    @property
    def metrics(self):
        return METRICS["accuracy"](), METRICS["macro_f1"]()

    def examples(self, source):
        rows = QUESTIONS if source.data is None else source.data
        names = ("question", "choices", "answer", "subject")
        return [dict(zip(names, row, strict=True)) for row in rows], "written for this test"

    def requests(self, example):
        return [Likelihood(example["question"], f" {choice}") for choice in example["choices"]]

    def score(self, example, answers):
        found = [a.log_probability / (a.num_bytes if self.per_byte else 1) for a in answers]
        chosen = max(range(len(found)), key=found.__getitem__)
        return {
            "question": example["question"],
            "predicted": chosen,
            "expected": example["answer"],
            "correct": chosen == example["answer"],
            "subject": example["subject"],
            "choices": example["choices"],
        }
