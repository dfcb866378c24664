"""What a pipeline has written: the data, the ledger, the signals, the counts."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nbllm.core.errors import DataError
from nbllm.core.io import atomic_file, expand_user, read_json, sha256_file
from nbllm.data.pipeline.counts import StepCount
from nbllm.data.pipeline.finishing import LEDGER_FILE, MANIFEST, SIGNALS_FILE
from nbllm.data.pipeline.funnel import Funnel
from nbllm.data.pipeline.parts import disk_errors
from nbllm.data.pipeline.thresholds import Outlook, StoredSignals

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from nbllm.core.report.sections import Section
    from nbllm.data.pipeline.prepared_dataset import PreparedDataset

SCHEMA = "nbllm-prepared/1"
MOST_MANIFEST_BYTES = 1 << 30
IN_MEMORY_BYTES = 1 << 28  # larger data are mapped from a file


class Prepared:
    """A folder that `Pipeline.run` has written. Shown in a notebook as its funnel.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        manifest: Its record, as plain values.

    Raises:
        DataError: There is no finished run in it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = expand_user(folder).absolute()
        try:
            self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST, MOST_MANIFEST_BYTES)
            known = self.manifest["schema"] == SCHEMA
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                "There is no finished preparation in this folder.",
                where=self.folder,
                hint="Run the pipeline.",
            ) from error
        if not known:
            raise DataError(
                "Another version has written this folder.", where=self.folder, hint="Prepare it again."
            )

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Return what is in a folder, or None where no pipeline has written it."""
        try:
            return cls(folder)
        except DataError:
            return None

    @classmethod
    def find(cls, folder: Path, fingerprint: str) -> Self | None:
        """Return what is in a folder, if it was made by the same steps of the same input and is undamaged."""
        try:
            prepared = cls(folder)
            if prepared.manifest["fingerprint"] != fingerprint:
                return None
            prepared.verify()
        except DataError:
            return None
        return prepared

    def verify(self) -> None:
        """Compare all checksums.

        Raises:
            DataError: A file is missing or damaged.
        """
        for record in (*self.manifest["data"], self.manifest["ledger"], self.manifest["signals"]):
            path = self.folder / record["file"]
            if not path.is_file() or sha256_file(path) != record["sha256"]:
                raise DataError("The file is missing or damaged.", where=path, hint="Run the pipeline again.")

    @property
    def files(self) -> list[Path]:
        """The Parquet files of the data."""
        return [self.folder / record["file"] for record in self.manifest["data"]]

    @property
    def counts(self) -> list[StepCount]:
        """What each step did, the first for reading."""
        return [StepCount.from_dict(count) for count in self.manifest["counts"]]

    @property
    def funnel(self) -> Funnel:
        """How much each step left, and why it removed the rest."""
        return Funnel(self.counts, self.manifest["tokens"], self.manifest["omitted"], self.manifest["notes"])

    def sections(self) -> list[Section]:
        """Return the preparation as a part of a report: `nb.evaluate(lm).add(prepared)`."""
        from nbllm.data.pipeline.sections import preparation_sections

        return preparation_sections(self)

    @property
    def ledger(self) -> pd.DataFrame:
        """A row for everything that was removed: id, step, rule, kind, start, stop, value, threshold, partner, ..."""
        return _frame(self.folder / LEDGER_FILE)

    @property
    def signals(self) -> pd.DataFrame:
        """A row for every document that was read: id, bytes, tokens, what was measured, and what removed it."""
        return _frame(self.folder / SIGNALS_FILE)

    @property
    def reports(self) -> dict[str, Any]:
        """What the steps that need the whole corpus tell of their work, by step: recall and precision of `dedup`."""
        found = {}
        for step in self.manifest["steps"]:
            metadata = self.manifest["reports"].get(step["key"])
            module, _, name = step["class"].partition(":")
            if metadata and module.startswith("nbllm."):  # no manifest shall import anything else
                kind = getattr(importlib.import_module(module), name)
                encoded = {key.encode(): value.encode() for key, value in metadata.items()}
                if (report := kind.report(encoded)) is not None:
                    found[step["key"]] = report
        return found

    def at(self, thresholds: Mapping[str, float]) -> Outlook:
        """Return what would be kept with other thresholds, from the stored signals.

        What depends on other documents (duplicates) is taken as it was decided.

        Args:
            thresholds: New ones, by "step: rule", or by the name of the rule or of its signal where only one has it:
                `{"gopher/mean_word_length": 3.5}`.

        Raises:
            UserError: There is no such rule, or no signal is stored for it.
        """
        return self._stored_signals.outlook(thresholds)

    @functools.cached_property
    def _stored_signals(self) -> StoredSignals:
        return StoredSignals(self.folder, self.manifest["steps"])

    def dataset(self) -> PreparedDataset:
        """Return what was kept as a `datasets.Dataset`, mapped from a file where it is large."""
        from nbllm.data.pipeline.prepared_dataset import PreparedDataset

        titles = ", ".join(step["key"] for step in self.manifest["steps"])
        return PreparedDataset.of(self, self._table(), f"Prepared by {titles}.")

    def _table(self) -> Any:
        import pyarrow.parquet as pq
        from datasets.table import InMemoryTable, MemoryMappedTable

        if sum(record["bytes"] for record in self.manifest["data"]) <= IN_MEMORY_BYTES:
            import pyarrow as pa

            return InMemoryTable(_without_empty_messages(pa.concat_tables(map(pq.read_table, self.files))))
        path = self.folder / f"text-{self.manifest['fingerprint'][:16]}.arrow"
        if not path.is_file():
            with disk_errors(self.folder), atomic_file(path) as aside:
                _copy(self.files, aside)
        return MemoryMappedTable.from_file(str(path))

    def __repr__(self) -> str:
        return f"Prepared({str(self.folder)!r})\n{self.funnel!r}"

    def _repr_html_(self) -> str:
        return self.funnel._repr_html_()


def _copy(files: list[Path], path: Path) -> None:
    """Write Parquet files into one Arrow stream, which can be mapped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = all(_has_no_messages(file) for file in files)
    writer: Any = None
    for file in files:
        with pq.ParquetFile(file) as source:
            names = [name for name in source.schema_arrow.names if not (empty and name == "messages")]
            for batch in source.iter_batches(columns=names):
                writer = writer or pa.ipc.new_stream(str(path), batch.schema)
                writer.write_batch(batch)
    writer.close()


def _has_no_messages(file: Path) -> bool:
    import pyarrow.parquet as pq

    if "messages" not in pq.read_schema(file).names:
        return True
    column = pq.read_table(file, columns=["messages"])["messages"]
    return bool(column.null_count == len(column))


def _without_empty_messages(table: pa.Table) -> pa.Table:
    """Leave out the column of conversations where there is none."""
    if "messages" in table.column_names and table["messages"].null_count == table.num_rows:
        return table.drop_columns("messages")
    return table


def _frame(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow.parquet as pq

    frame: pd.DataFrame = pq.read_table(path).to_pandas(types_mapper=pd.ArrowDtype)
    return frame
