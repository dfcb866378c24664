"""Take one batch of documents through steps: apply rules and edits, count, and write down what was removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.counts import Amount, RuleCount, StepCount
from nbllm.data.pipeline.edited import edited
from nbllm.data.pipeline.ledger import LEDGER, document_rows, edit_rows
from nbllm.data.pipeline.placed import Placed
from nbllm.data.pipeline.step import CorpusStep, Editor, Edits, Filter, Step
from nbllm.data.pipeline.tokens import TokenCounter

ID, TEXT, TOKENS = "document_id", "text", "document_tokens"  # columns of the documents
REMOVED_BY = "removed_by"  # a column of the signals, which has no name with a slash


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        documents: The rows that are kept, edited.
        signals: One row for each document that entered: its id, bytes, tokens, the signals (null where a step did not
            see the document) and the step and rule that removed it ("step: rule"; null where it was kept).
        ledger: One row for everything that was removed.
        counts: One for each step.
    """

    documents: pa.Table
    signals: pa.Table
    ledger: pa.Table
    counts: list[StepCount]


def run_steps(
    batch: pa.Table, steps: Sequence[Placed], decisions: pa.Table | None, counter: TokenCounter
) -> Outcome:
    """Take a batch through steps.

    Args:
        batch: With the columns `document_id`, `text` and `tokens`; others are carried along.
        steps: Filters and editors; the first may be a `CorpusStep` that was solved.
        decisions: What it decided about these documents.
        counter: Counts the tokens of texts that were edited.

    Raises:
        UserError: A step returns arrays that do not fit the batch or one another.
    """
    run = _Run(batch, counter)
    for step in steps:
        run.take(step, decisions)
    return run.outcome()


class _Run:
    """A batch on its way through steps.

    Filters beside one another see the same documents, those that one of them has dropped too; so `table` holds the
    documents of the current segment, and `alive` says which of them are kept so far.
    """

    def __init__(self, batch: pa.Table, counter: TokenCounter) -> None:
        self.counter = counter
        self.num_entered = batch.num_rows
        self.columns: dict[str, pa.Array] = {}
        self.removed_by = np.full(batch.num_rows, None, object)
        self.ledger: list[pa.Table] = []
        self.counts: list[StepCount] = []
        self.rows = np.arange(batch.num_rows)
        self._enter(batch)
        self.entered = pa.table({
            "id": batch[ID], "bytes": pa.array(self.sizes, pa.int64()), "tokens": pa.array(self.tokens, pa.int64()),
        })  # fmt: skip

    def _enter(self, table: pa.Table) -> None:
        """Begin a segment with these documents."""
        self.table = table
        self.texts = Texts.of(table[TEXT])
        self.sizes = np.diff(self.texts.offsets)
        self.tokens = table[TOKENS].to_numpy()
        self.alive = np.ones(table.num_rows, bool)

    def _leave_out_dropped(self) -> None:
        if not self.alive.all():
            self.rows = self.rows[self.alive]
            self._enter(self.table.filter(pa.array(self.alive)).combine_chunks())

    def amount(self, chosen: NDArray[np.bool_]) -> Amount:
        """Return how much text the chosen documents of the segment are."""
        return Amount(int(chosen.sum()), int(self.sizes[chosen].sum()), int(self.tokens[chosen].sum()))

    def take(self, place: Placed, decisions: pa.Table | None) -> None:
        """Take the batch through one step."""
        step = place.step
        if not isinstance(step, Filter) or step.expensive:
            self._leave_out_dropped()
        if isinstance(step, Filter):
            found = Edits.none(step.signals(self.texts))
        elif isinstance(step, Editor):
            found = step.edits(self.texts)
        else:
            assert isinstance(step, CorpusStep) and decisions is not None
            found = step.apply(self.texts, self.table[ID].to_numpy(), decisions)
        self._store(place, found.signals)
        entered, broken, values = self.amount(self.alive), *self._broken(step, found)
        rules = self._drop(place, found, broken, values)
        count = StepCount(step.title, entered, self.amount(self.alive), 0, rules)
        if not isinstance(step, Filter):
            self._leave_out_dropped_and_edit(place, found, count)
        else:
            self.counts.append(dataclasses.replace(count, step=place.key))

    def _store(self, place: Placed, signals: Mapping[str, NDArray[Any]]) -> None:
        for name, values in signals.items():
            values = np.asarray(values)
            if values.shape != (self.table.num_rows,):
                raise UserError(
                    f"The signal {name!r} of step {place.key!r} has the shape {values.shape}, for"
                    f" {self.table.num_rows} documents.",
                    hint="Return one value for each document.",
                )
            column = pa.array(values)
            if len(self.rows) < self.num_entered:
                where = np.full(self.num_entered, -1)
                where[self.rows] = np.arange(len(self.rows))
                column = column.take(pa.array(where, mask=where < 0))
            self.columns[place.column(name)] = column

    def _broken(self, step: Step, found: Edits) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return (rule, document) which rules are broken, and what was measured."""
        broken = np.zeros((len(step.rules), self.table.num_rows), bool)
        values = np.full(broken.shape, np.nan)
        for index, rule in enumerate(step.rules):
            if rule.kind != "document":
                continue
            if rule.signal:
                if rule.signal not in found.signals:
                    raise UserError(
                        f"Step {step.title!r} has a rule on {rule.signal!r}, which is none of its signals."
                    )
                values[index] = found.signals[rule.signal]
                broken[index] = rule.broken(np.asarray(found.signals[rule.signal])) & self.alive
            chosen = found.rule == index
            broken[index, found.document[chosen]] = True
            values[index, found.document[chosen]] = found.value[chosen]
        return broken, values

    def _drop(
        self, place: Placed, found: Edits, broken: NDArray[np.bool_], values: NDArray[np.float64]
    ) -> dict[str, RuleCount]:
        """Drop the documents that break a rule, and return what each rule removed."""
        rules = place.step.rules
        counts = {}
        dropped: NDArray[np.bool_] = np.asarray(broken.any(0))
        first = broken.argmax(0) if len(rules) else np.zeros(len(dropped), np.int64)
        for index, rule in enumerate(rules):
            removed = self.amount(dropped & (first == index))
            counts[rule.name] = RuleCount(rule.kind, int(broken[index].sum()), removed)
            self.removed_by[self.rows[dropped & (first == index)]] = f"{place.key}: {rule.name}"
        if dropped.any():
            ids = self.table[ID].to_numpy()
            self.ledger.append(document_rows(place, self.texts, ids, found, broken, values))
            self.alive &= ~dropped
        return counts

    def _leave_out_dropped_and_edit(self, place: Placed, found: Edits, count: StepCount) -> None:
        """Apply the edits of lines and spans to the documents that are kept, and count."""
        kinds = np.array([rule.kind != "document" for rule in place.step.rules] or [False])
        chosen = kinds[found.rule] & self.alive[found.document]
        rules = dict(count.rules)
        added = 0
        if chosen.any():
            self._refuse_conversations(place, found.document[chosen])
            cut = edited(self.texts, found, chosen, place.key)
            ids = self.table[ID].to_numpy()
            self.ledger.append(edit_rows(place, self.texts, ids, found, np.flatnonzero(chosen)))
            added = cut.added
            for index, rule in enumerate(place.step.rules):
                if kinds[index]:
                    hits = chosen & (found.rule == index)
                    num_bytes = int((found.stop[hits] - found.start[hits]).sum())
                    rules[rule.name] = RuleCount(rule.kind, int(hits.sum()), Amount(0, num_bytes, 0))
            place_of_text = self.table.column_names.index(TEXT)
            table = self.table.set_column(place_of_text, TEXT, cut.column)
            changed = np.unique(found.document[chosen])
            tokens = self.tokens.copy()
            tokens[changed] = self.counter.count(Texts.of(cut.column.take(pa.array(changed))))
            table = table.set_column(table.column_names.index(TOKENS), TOKENS, pa.array(tokens))
            alive = self.alive
            self._enter(table)
            self.alive = alive
        self.counts.append(
            dataclasses.replace(count, step=place.key, left=self.amount(self.alive), added=added, rules=rules)
        )
        self._leave_out_dropped()

    def _refuse_conversations(self, place: Placed, document: NDArray[np.int64]) -> None:
        if "messages" not in self.table.column_names:
            return
        messages = self.table["messages"].combine_chunks().take(pa.array(np.unique(document)))
        if messages.null_count < len(messages):
            raise DataError(
                f"Step {place.key!r} would cut text out of a conversation.",
                where=f"document {self.table[ID][int(document[0])].as_py()}",
                hint="Conversations can be dropped whole; leave out steps that edit, or the column 'messages'.",
            )

    def outcome(self) -> Outcome:
        """Return what became of the batch."""
        self._leave_out_dropped()
        signals = self.entered
        for name, column in self.columns.items():
            signals = signals.append_column(name, column)
        signals = signals.append_column(REMOVED_BY, pa.array(self.removed_by, pa.string()))
        ledger = pa.concat_tables(self.ledger) if self.ledger else LEDGER.empty_table()
        return Outcome(self.table, signals, ledger, self.counts)
