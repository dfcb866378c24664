"""A data set that remembers how it was prepared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from datasets import Dataset, DatasetInfo

from nbllm.data.pipeline.funnel import Funnel
from nbllm.data.pipeline.thresholds import Outlook

if TYPE_CHECKING:
    import pandas as pd

    from nbllm.core.report.sections import Section
    from nbllm.data.pipeline.prepared import Prepared


class PreparedDataset(Dataset):
    """What a pipeline kept, as any `datasets.Dataset`; shown in a notebook as the funnel.

    A data set that is made of it by `select`, `filter`, `map` and the like is a plain one.

    Attributes:
        prepared: The folder it was read from.
    """

    prepared: Prepared

    @classmethod
    def of(cls, prepared: Prepared, table: Any, description: str) -> Self:
        """Return the data set over a table.

        Args:
            prepared: Where it comes from.
            table: A table of the `datasets` library.
            description: Of the text, for records of runs.
        """
        dataset = cls(
            table,
            info=DatasetInfo(description=description),
            fingerprint=prepared.manifest["fingerprint"][:16],
        )
        dataset.prepared = prepared
        return dataset

    @property
    def ledger(self) -> pd.DataFrame:
        """A row for everything that was removed, with step, rule, value and threshold."""
        return self.prepared.ledger

    @property
    def signals(self) -> pd.DataFrame:
        """A row for every document that was read, with what was measured and what removed it."""
        return self.prepared.signals

    @property
    def reports(self) -> dict[str, Any]:
        """What the steps that need the whole corpus tell of their work, by step: recall and precision of `dedup`."""
        return self.prepared.reports

    def sections(self) -> list[Section]:
        """Return the preparation as a part of a report: `nb.evaluate(lm).add(clean)`."""
        return self.prepared.sections()

    @property
    def funnel(self) -> Funnel:
        """How much each step left."""
        return self.prepared.funnel

    def at(self, thresholds: Mapping[str, float]) -> Outlook:
        """Return what would be kept with other thresholds; see `Prepared.at`."""
        return self.prepared.at(thresholds)

    def __repr__(self) -> str:
        return f"{super().__repr__()}\n{self.funnel!r}"

    def _repr_html_(self) -> str:
        return self.funnel._repr_html_()
