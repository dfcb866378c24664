"""What a preparation step is: a filter, an editor, or a step that sees the whole corpus.

A step is a frozen dataclass whose fields are its settings. It never changes the documents itself: it returns signals
and edits as arrays, and the engine applies the rules, cuts the text, writes the ledger and counts. So a step is a pure
function of a batch of documents, and the same on one machine and on a cluster:

- what it returns for a document depends on that document (and, for a `CorpusStep`, on its decisions) alone, not on the
  other documents of the batch nor on where batches begin;
- it is called from several threads at once, and is pickled to the workers of a cluster: what is costly to make
  (a compiled expression, an index) is made on first use, and kept outside of the dataclass's fields;
- text is hostile: any bytes, empty documents and nulls get a verdict.

A step is registered by name: `@STEPS.register("gopher")` above the class.
"""

from __future__ import annotations

import dataclasses
import hashlib
import marshal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa

    from nbllm.data.arrow_text import Texts

Kind = Literal["document", "line", "span"]
Keep = Literal["at least", "at most"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One reason to remove something.

    A rule of kind "document" that names a signal is decided by the engine: a document is kept where the signal is at
    least (at most) the threshold; where the signal is NaN, it is not defined for the document, and the document is
    kept. So its threshold can be moved later without running the step again. A rule without a signal is decided by
    the step: the edits that name it are what it removes.

    Attributes:
        name: What is demanded, in a few words: "mean word length, at least".
        signal: The column that it reads; "" where the step itself decides.
        keep: Whether what is kept has at least, or at most, the threshold.
        threshold: The limit; NaN where there is none.
        unit: Of the threshold: "words", "characters", "" for a share.
        kind: What it removes: whole documents, lines, or spans of text.
    """

    name: str
    signal: str = ""
    keep: Keep = "at least"
    threshold: float = float("nan")
    unit: str = ""
    kind: Kind = "document"

    def __post_init__(self) -> None:
        if self.keep not in ("at least", "at most"):
            raise UserError(f"keep is {self.keep!r}; it must be 'at least' or 'at most'.", where=self.name)
        if self.kind not in ("document", "line", "span"):
            raise UserError(
                f"kind is {self.kind!r}; it must be 'document', 'line' or 'span'.", where=self.name
            )

    def broken(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return (documents,) whether each value of the signal breaks the rule; a NaN does not."""
        if self.keep == "at least":
            return np.asarray(values < self.threshold)
        return np.asarray(values > self.threshold)


class Edits(NamedTuple):
    """What an editor removes or replaces, one entry an edit, ordered by (document, start).

    Spans of one document do not overlap, and lie on the borders of characters. An edit whose rule is of kind
    "document" drops the whole document; its span then says what in the document was the reason (0, 0 where nothing in
    particular was). Of a dropped document no other edits are applied.

    Attributes:
        document: int64 (edits,), the index of the document in the batch.
        start: int64 (edits,), the first byte within the document.
        stop: int64 (edits,), the byte behind the last one.
        rule: int32 (edits,), the index in the step's `rules`.
        value: float64 (edits,), what was measured; NaN where nothing was.
        replacement: Bytes that are put in the place of each; an empty one where it is removed, None where all are.
        partner: int64 (edits,), the id of the document that this one repeats, or -1; None where no step has one.
        jaccard: float64 (edits,), how alike the two are; NaN where not measured.
        shown: What the ledger quotes of each, where that is not to be the removed text itself (masked
            personal data); None for those of which it is.
        signals: Columns that are stored, each (documents,): see `Filter.signals`.
    """

    document: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    rule: NDArray[np.int32]
    value: NDArray[np.float64]
    replacement: Sequence[bytes] | None = None
    partner: NDArray[np.int64] | None = None
    jaccard: NDArray[np.float64] | None = None
    shown: Sequence[str | None] | None = None
    signals: Mapping[str, NDArray[Any]] = {}

    @classmethod
    def none(cls, signals: Mapping[str, NDArray[Any]] | None = None) -> Edits:
        """Return no edits: of a step that found nothing, or that only tags."""
        places = np.empty(0, np.int64)
        return cls(
            places, places, places, np.empty(0, np.int32), np.empty(0, np.float64), signals=signals or {}
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """The base of all steps; a subclass is a frozen dataclass of one of the three shapes below.

    Attributes:
        name: The name it is registered under, which `STEPS.register` sets.
        expensive: Whether it takes so long that it sees only the documents that the filters before it have kept.
            Another filter sees all documents that reach its stage, so that the thresholds of the filters beside it
            can be moved, loosened too, without running it again.
    """

    name: ClassVar[str] = ""
    expensive: ClassVar[bool] = False

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it removes, in the order in which the rules are tried; none for a step that only tags."""
        return ()

    @property
    def title(self) -> str:
        """What it is called in the funnel and the ledger: its registered name, else that of its class."""
        return self.name or type(self).__name__

    def describe(self) -> dict[str, Any]:
        """Return name and settings as plain values for JSON; two steps that say the same do the same."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.repr}
        return {"step": self.title, **settings}

    def reasons(self, rule: str, text: str) -> Sequence[tuple[int, int]]:
        """Return what in a text a rule objects to, for a person who looks at it: spans of characters, ascending.

        Args:
            rule: The name of one of `rules`.
            text: A document that it removed, or the beginning of it.
        """
        return ()


@dataclasses.dataclass(frozen=True)
class Filter(Step):
    """Keeps or drops whole documents, by signals and thresholds."""

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return what is measured: names of columns, `gopher/mean_word_length`, to arrays.

        Each array is (documents,), of float, integer or bool, with one value a document, or of strings, which no rule
        reads. They are stored beside the data for every document that the step has seen. A document is dropped by
        the first rule that it breaks; the ledger has all that it breaks.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Editor(Step):
    """Removes or replaces lines and spans within documents; it may also drop documents.

    A step that only tags returns `Edits.none(signals)`.
    """

    def edits(self, texts: Texts) -> Edits:
        """Return the edits of a batch, and the signals."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class CorpusStep(Step):
    """Decides about a document by all the others: duplicates, samples, consistent placeholders.

    The engine calls `scan` on every batch, `solve` once, then `apply` on every batch.
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns of what `scan` returns, of uint64 keys: `Tables.sharing` gives the documents that share one.

        They are found before `solve`, each column by whichever worker is free.
        """
        return ()

    def scan(self, texts: Texts, ids: NDArray[np.int64]) -> pa.Table:
        """Return what has to be known of each document: a few bytes each, kept on the disk.

        The schema is always the same, also where there are no documents.

        Args:
            texts: The batch.
            ids: int64 (documents,), ascending within the batch and from batch to batch; they stay the same when
                files are added to the corpus.
        """
        raise NotImplementedError

    def solve(self, tables: Tables, workdir: Path) -> pa.Table:
        """Return the decisions: a table with a column `id` (int64) and whatever `apply` needs.

        Its result does not depend on how the rows of `tables` are ordered: a tie goes to the smaller id. Memory is
        bounded: what does not fit is kept in `workdir`.

        Args:
            tables: What `scan` returned for each batch; can be iterated more than once.
            workdir: An empty folder for files of its own, which is deleted afterwards.
        """
        raise NotImplementedError

    @classmethod
    def report(cls, metadata: Mapping[bytes, bytes]) -> Any:
        """Return what `solve` tells of its own work, as an object that shows itself; None where it tells nothing.

        Args:
            metadata: Of the schema of the decisions, which the manifest keeps.
        """
        return None

    def apply(self, texts: Texts, ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
        """Return the edits of a batch, and the signals.

        Args:
            texts: The batch, the same texts as in `scan`; batches may begin elsewhere.
            ids: int64 (documents,), as in `scan`.
            decisions: Those rows of what `solve` returned whose `id` is in `ids`, ordered by `id`.
        """
        raise NotImplementedError


class Tables(Iterable["pa.Table"]):
    """Tables on the disk, mapped into memory one at a time.

    Args:
        files: Arrow stream files, in the order of their shards.
        folder: Where the documents that share keys were written (`pipeline.shuffle`); None: nowhere.
    """

    def __init__(self, files: Sequence[Path], folder: Path | None = None) -> None:
        self._files = list(files)
        self._folder = folder

    def column(self, name: str, dtype: Any) -> NDArray[Any]:
        """Return a column of numbers, of all tables behind one another: (documents,)."""
        parts = [table[name].to_numpy() for table in self]
        return np.concatenate([np.empty(0, dtype), *parts])

    def sharing(self, name: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the documents whose key others have too, in one of `CorpusStep.keys`.

        Returns:
            (entries,) keys, ascending, of which the low bits that number the documents are zero; and (entries,) ids.
        """
        assert self._folder is not None
        keys, ids = np.load(shared_file(self._folder, name))
        return keys.view(np.uint64), ids

    def __iter__(self) -> Any:
        import pyarrow as pa

        for file in self._files:
            with pa.memory_map(str(file)) as source:
                yield pa.ipc.open_stream(source).read_all()

    def __len__(self) -> int:
        return len(self._files)


def shared_file(folder: Path, column: str) -> Path:
    """Return where the documents that share a key of a column are written."""
    return folder / f"{column}.npy"


class _Steps(Registry[type[Step]]):
    """The registry of steps: a step knows the name that it is registered under."""

    def register(self, name: str) -> Any:
        enter = super().register(name)

        def named(step: type[Step]) -> type[Step]:
            step.name = name
            return enter(step)

        return named


STEPS: Registry[type[Step]] = _Steps(
    "preparation step",
    "nbllm.data.quality",
    "nbllm.data.deduplication",
    "nbllm.data.pii",
    "nbllm.data.harm",
    "nbllm.data.decontamination",
)


def function_name(function: Any) -> str | None:
    """Return what a step says of a function it was given: where it is from, and a digest of its code.

    What a function takes from outside of it, such as the weights of a model, the digest does not cover.
    """
    if function is None:
        return None
    named = function if hasattr(function, "__qualname__") else type(function)
    code = getattr(function, "__code__", None) or getattr(named.__call__, "__code__", None)
    digest = "" if code is None else f" {hashlib.sha256(marshal.dumps(code, 2)).hexdigest()[:16]}"
    return f"{named.__module__}.{named.__qualname__}{digest}"
