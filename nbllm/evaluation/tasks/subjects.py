"""The base of multiple-choice tasks whose questions belong to subjects, which belong to groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from nbllm.core.errors import UserError, nearest
from nbllm.core.report.sections import Section, Table
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice

if TYPE_CHECKING:
    from nbllm.evaluation.measuring import Measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class BySubject(MultipleChoice):
    """A task with subjects. Its items have a "subject", and their worked examples are of the same one.

    Args:
        subjects: Names of subjects; none is all.

    Attributes:
        groups: The group of each subject.
    """

    cluster = "subject"
    pool = "subject"
    groups: ClassVar[Mapping[str, str]]

    subjects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names of the subjects."""
        super().__post_init__()
        given: object = self.subjects
        names = (given,) if isinstance(given, str) else tuple(self.subjects)
        object.__setattr__(self, "subjects", names)
        for name in names:
            if name not in self.groups:
                raise UserError(
                    f"{self.name} has no subject {name!r}.",
                    where="subjects",
                    hint=nearest(str(name), self.groups),
                )

    def wanted(self, item: Item) -> bool:
        """Say whether an item is of one of the subjects."""
        return not self.subjects or item["subject"] in self.subjects

    def sections(self, measured: Measured) -> list[Section]:
        """Return the figures, and the accuracy of every group and every subject."""
        subjects = measured.columns["subject"]
        correct = measured.columns[self.metrics[0].columns[0]]
        rows: list[tuple[str, str, int, float]] = []
        for group in dict.fromkeys(self.groups[subject] for subject in sorted(set(subjects))):
            inside = np.array([self.groups[subject] == group for subject in subjects])
            rows.append((group, "all", int(inside.sum()), float(correct[inside].mean())))
            for subject in sorted(set(subjects[inside])):
                of = subjects == subject
                rows.append((group, subject.replace("_", " "), int(of.sum()), float(correct[of].mean())))
        table = Table(
            header=("group", "subject", "questions", self.metrics[0].label),
            rows=tuple(rows),
            caption="By group, over all of its questions, and by subject.",
        )
        return [*super().sections(measured), table]
