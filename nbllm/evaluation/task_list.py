"""All tasks as a table: what each asks, which figures it gives, its settings, its data and where it was published."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from nbllm.evaluation.entry_list import EntryList
from nbllm.evaluation.tasks.base import Task
from nbllm.evaluation.tasks.catalogue import TASKS


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """One task.

    Attributes:
        name: What `nb.evaluate` takes.
        kind: The class; its fields are the settings.
    """

    name: str
    kind: type[Task]

    @property
    def figures(self) -> tuple[str, ...]:
        """The figures of its reports, the most important first."""
        return tuple(metric.name for metric in self.kind().metrics)

    @property
    def settings(self) -> dict[str, Any]:
        """What `nb.evaluate` takes for it, with the defaults."""
        return self.kind().to_dict()

    @property
    def summary(self) -> str:
        """What it asks."""
        return self._paragraphs[0]

    @property
    def data(self) -> str:
        """The layout that its data have, and their name on the hub."""
        return self._after("Data:")

    @property
    def source(self) -> str:
        """Where it was published."""
        return self._after("Source:")

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        figures = ", ".join(self.figures)
        return (self.name, self.kind.label, figures, self.summary, settings, self.data, self.source)

    @property
    def _paragraphs(self) -> list[str]:
        """The paragraphs of what is written of the class, and after them of its module, each in one line."""
        texts = (inspect.getdoc(self.kind) or "", inspect.getdoc(inspect.getmodule(self.kind)) or "")
        return [" ".join(each.split()) for each in "\n\n".join(texts).split("\n\n")]

    def _after(self, mark: str) -> str:
        return next(
            (each.removeprefix(mark).strip() for each in self._paragraphs if each.startswith(mark)), ""
        )


class TaskList(EntryList[TaskEntry]):
    """Tasks, shown in a cell as tables; `nb.evaluate(lm, name)` measures one."""

    header = ("task", "label", "figures", "what is asked", "settings", "data", "source")
    shown = 4
    named = 1
    folded = "The settings, data and source of each"


def list_tasks() -> TaskList:
    """Return every task of `nb.evaluate`, by name. Opens no model and needs no network."""
    return TaskList([TaskEntry(name, TASKS[name]) for name in sorted(TASKS)])
