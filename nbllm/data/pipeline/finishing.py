"""What a finished pipeline leaves in its folder: the data, the ledger, the signals, the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nbllm.core.io import atomic_files, link_or_copy, sha256_file, write_json
from nbllm.data.pipeline.applying import REMOVED_BY
from nbllm.data.pipeline.parts import DATA, LEDGER_PART, SIGNALS, Part, disk_errors

MANIFEST, LEDGER_FILE, SIGNALS_FILE, DATA_FOLDER = (
    "manifest.json",
    "ledger.parquet",
    "signals.parquet",
    "data",
)


def finish(out: Path, stages: Sequence[tuple[Path, Sequence[Part]]], manifest: dict[str, Any]) -> None:
    """Put the results of all stages in their places, in the stead of earlier ones.

    Args:
        out: The folder.
        stages: The folder and the parts of each.
        manifest: What else the manifest says.
    """
    last, parts = stages[-1]
    with disk_errors(out), atomic_files(out, lambda aside: _stale(out, aside)) as aside:
        (aside / DATA_FOLDER).mkdir()
        files = []
        for number, part in enumerate(parts):
            name = f"{DATA_FOLDER}/part-{number:05d}.parquet"
            link_or_copy(part.file(last, DATA), aside / name)
            files.append({"file": name, **vars(part.left), "sha256": part.sha256[DATA]})
        _write(
            aside / LEDGER_FILE,
            (pq.read_table(part.file(folder, LEDGER_PART)) for folder, parts in stages for part in parts),
        )
        _write(
            aside / SIGNALS_FILE,
            map(_joined, zip(*(_signals(folder, parts) for folder, parts in stages), strict=True)),
        )
        for name in (LEDGER_FILE, SIGNALS_FILE):
            manifest[name.partition(".")[0]] = {
                "file": name,
                "rows": pq.read_metadata(aside / name).num_rows,
                "sha256": sha256_file(aside / name),
            }
        write_json(aside / MANIFEST, {**manifest, "data": files})


def _stale(out: Path, aside: Path) -> list[Path]:
    """Return the data files of an earlier run that the new one does not replace."""
    new = {file.name for file in (aside / DATA_FOLDER).iterdir()}
    return [file for file in (out / DATA_FOLDER).glob("part-*.parquet") if file.name not in new]


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    writer = None
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(str(path), table.schema, compression="zstd", compression_level=3)
            writer.write_table(table.cast(writer.schema), row_group_size=max(table.num_rows, 1))
    finally:
        if writer is not None:
            writer.close()


def _signals(folder: Path, parts: Sequence[Part]) -> Iterator[pa.Table]:
    return (pq.read_table(part.file(folder, SIGNALS)) for part in parts)


def _joined(stages: Sequence[pa.Table]) -> pa.Table:
    """Return the signals of one part in all stages: a row for each document that entered the first."""
    first = stages[0]
    ids = first["id"].to_numpy()
    order = np.argsort(ids)
    for later in stages[1:]:
        rows = np.full(len(ids), -1)
        rows[order[np.searchsorted(ids, later["id"].to_numpy(), sorter=order)]] = np.arange(later.num_rows)
        where = pa.array(rows, mask=rows < 0)
        for name in later.column_names:
            if name == REMOVED_BY:
                place = first.column_names.index(name)
                both = pc.coalesce(first[name], later[name].combine_chunks().take(where))
                first = first.set_column(place, name, both)
            elif "/" in name or name not in first.column_names:
                first = first.append_column(name, later[name].combine_chunks().take(where))
    return first
