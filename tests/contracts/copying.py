"""A task of generation: the text that a model writes is compared with one of several right ones."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation import METRICS, TASKS, Generate, Task
from nbllm.inference.config import SamplingConfig

ITEMS = (
    ("the cat", (" sat", " sat on")),
    ("the dog", (" ran",)),
    ("def", (" return", " x")),
    ("if x", (" =",)),
)


@TASKS.register("copying")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Copying(Task):
    """Continues a text.

    Args:
        max_new_tokens: How many tokens the model may write.
    """

    name = "copying"
    label = "copying"

    max_new_tokens: int = 4

    @property
    def metrics(self):
        return (METRICS["accuracy"](),)

    def examples(self, source):
        items = ITEMS if source.data is None else source.data
        return [
            {"prompt": prompt, "answers": list(answers)} for prompt, answers in items
        ], "written for this test"

    def requests(self, example):
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=self.max_new_tokens, stop=("\n",))
        return [Generate(example["prompt"], sampling)]

    def score(self, example, answers):
        (written,) = answers
        correct = any(written.startswith(answer) for answer in example["answers"])
        return {**example, "written": written, "stopped_by": written.stopped_by, "correct": correct}
