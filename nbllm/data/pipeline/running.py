"""One run of a pipeline: its stages, one after another, and what they leave."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nbllm.core.errors import DataError
from nbllm.core.io import read_json, remove_leftovers, sha256_file, write_json
from nbllm.data.pipeline import shards
from nbllm.data.pipeline.code_digest import code_digest
from nbllm.data.pipeline.counts import StepCount
from nbllm.data.pipeline.executing import Executor
from nbllm.data.pipeline.finishing import finish
from nbllm.data.pipeline.parts import MOST_RECORD_BYTES, SCAN, Part, disk_errors, total
from nbllm.data.pipeline.placed import Placed, placed
from nbllm.data.pipeline.prepared import SCHEMA, Prepared
from nbllm.data.pipeline.reading import Readable
from nbllm.data.pipeline.shards import Source
from nbllm.data.pipeline.shuffle import shuffle
from nbllm.data.pipeline.stage import Decisions, Stage, UnitResult
from nbllm.data.pipeline.step import CorpusStep, Editor, Filter, Step, Tables
from nbllm.data.pipeline.tokens import TokenCounter
from nbllm.data.sources.omissions import NUM_EXAMPLES, Omissions

STAGES, CHECKSUMS, DECISIONS, SOLVED, WORK = (
    "stages",
    "checksums.json",
    "decisions.arrow",
    "solved.json",
    "work",
)


@dataclasses.dataclass(frozen=True)
class _Planned:
    """The steps of a stage, and the one behind it that needs the whole corpus."""

    steps: tuple[Placed, ...]
    scan: Placed | None


def plan(steps: Sequence[Step]) -> list[_Planned]:
    """Cut steps into stages: behind each that needs the whole corpus begins another."""
    stages: list[_Planned] = []
    current = [Placed(Readable(), "read")]
    for place in placed(steps):
        if isinstance(place.step, CorpusStep):
            stages.append(_Planned(tuple(current), place))
            current = [place]
        else:
            current.append(place)
    return [*stages, _Planned(tuple(current), None)]


class Run:
    """A run of steps.

    Args:
        steps: The steps.
        counter: Counts tokens.
        part_bytes: Text that enters a part, about.
        out: The folder to write.
        executor: Does the work.
        on_error: "raise" or "skip".
    """

    def __init__(
        self,
        steps: Sequence[Step],
        counter: TokenCounter,
        part_bytes: int,
        out: Path,
        executor: Executor,
        *,
        on_error: str,
    ) -> None:
        self.steps, self.counter, self.part_bytes = steps, counter, part_bytes
        self.out, self.executor = out, executor
        self.omissions = Omissions(on_error)
        self.stages = out / STAGES
        self.reports: dict[str, dict[str, str]] = {}  # metadata of decisions

    def run(self, source: Any, settings: Mapping[str, Any]) -> Prepared:
        """Run the stages that did not run before, and put the results in their places."""
        with disk_errors(self.out):
            self.stages.mkdir(exist_ok=True)
            for folder in (self.out, self.stages, *self.stages.iterdir()):
                if folder.is_dir():
                    remove_leftovers(folder)
        opened = self._open(source, settings)
        planned = plan(self.steps)
        names = self._fingerprints(opened, planned)
        if (found := Prepared.find(self.out, names[-1])) is not None:
            return found
        done: list[tuple[Path, list[Part]]] = []
        results: list[UnitResult] = []
        decisions: Path | None = None
        for index, (stage, name) in enumerate(zip(planned, names, strict=True)):
            folder = self.stages / f"{index}-{name[:16]}"
            work = Stage(
                index, str(folder), stage.steps, _corpus_step(stage.scan),
                None if decisions is None else str(decisions), self.counter, self.part_bytes, self.omissions.skip,
            )  # fmt: skip
            with disk_errors(self.out):
                folder.mkdir(exist_ok=True)
            if index == 0:
                results = self._read(work, opened, len(planned))
                parts = [part for result in results for part in result.parts]
            else:
                self._go_on(work, done[-1], len(planned))
            done.append((folder, [_part(folder, part) for part in parts]))
            if stage.scan is not None:
                decisions = self._solve(stage.scan, *done[-1])
                self.reports[stage.scan.key] = _metadata(decisions)
        counts = [count for _, parts in done for count in total(parts)]
        check(counts)
        self._forget(results)
        finish(self.out, done, self._manifest(opened, planned, names, counts))
        for folder in self.stages.iterdir():
            if folder.is_dir() and folder not in [kept for kept, _ in done]:
                shutil.rmtree(folder, ignore_errors=True)
        self.omissions.report("")
        return Prepared(self.out)

    def _open(self, source: Any, settings: Mapping[str, Any]) -> Source:
        """Open the input; checksums of files that did not change are not taken again."""
        known: dict[str, str] = {}
        record = self.stages / CHECKSUMS
        if record.is_file():
            try:
                known = dict(read_json(record, MOST_RECORD_BYTES))
            except (OSError, ValueError):
                known = {}
        before = len(known)
        opened = Source.open(source, settings, self.part_bytes, known)
        with disk_errors(self.out):
            if len(known) > before:
                write_json(record, known)
            return self.executor.prepare(opened, self.stages, self.part_bytes)

    def _fingerprints(self, source: Source, planned: Sequence[_Planned]) -> list[str]:
        """Return a name for the output of each stage: of the input, settings and code that it comes from."""
        before = [source.fingerprint, self.counter.how, self.part_bytes, self.omissions.skip]
        before += [SCHEMA, pa.__version__, shards.BATCH_ROWS, shards.BATCH_BYTES]
        names: list[str] = []
        for stage in planned:
            steps = [*stage.steps, *([] if stage.scan is None else [stage.scan])]
            said = [[place.key, place.step.describe(), code_digest(type(place.step))] for place in steps]
            text = json.dumps([before, said], sort_keys=True, default=repr)
            names.append(hashlib.sha256(text.encode()).hexdigest())
            before = [names[-1]]
        return names

    def _read(self, stage: Stage, source: Source, count: int) -> list[UnitResult]:
        sizes = [unit.bytes for unit in source.units]
        results = self.executor.map(stage.run_unit, source.units, sizes, _label(0, count))
        if not any(result.parts for result in results):
            raise DataError("There is no document in the input.", hint="Give another source.")
        return results

    def _go_on(self, stage: Stage, before: tuple[Path, list[Part]], count: int) -> None:
        folder, parts = before
        work = functools.partial(stage.run_part, before=str(folder))
        sizes = [part.left.bytes for part in parts]
        self.executor.map(work, [part.name for part in parts], sizes, _label(stage.index, count))

    def _solve(self, place: Placed, folder: Path, parts: Sequence[Part]) -> Path:
        """Let a step decide about the corpus, unless it did so earlier; return the file of its decisions."""
        path, record = folder / DECISIONS, folder / SOLVED
        try:
            if read_json(record, MOST_RECORD_BYTES) == sha256_file(path):
                return path
        except (OSError, ValueError):
            pass
        files = [part.file(folder, SCAN) for part in parts]
        step = place.step
        assert isinstance(step, CorpusStep)
        with disk_errors(self.out):
            with _empty(folder / WORK) as workdir:
                shuffle(self.executor, files, step.keys, workdir)
                self.executor.call(functools.partial(_solved, step, files, path, workdir))
            write_json(record, sha256_file(path))
        return path

    def _forget(self, results: Sequence[UnitResult]) -> None:
        """Gather what could not be read."""
        for result in results:
            for note in result.notes:
                self.omissions.note(note)
            for kind, count in result.omitted.items():
                self.omissions.counts[kind] += count
                places = self.omissions.examples.setdefault(kind, [])
                places += result.examples.get(kind, [])[: NUM_EXAMPLES - len(places)]

    def _manifest(
        self, source: Source, planned: Sequence[_Planned], names: Sequence[str], counts: Sequence[StepCount]
    ) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "fingerprint": names[-1],
            "source": source.described,
            "omitted": dict(self.omissions.counts),
            "notes": self.omissions.notes,
            "tokens": self.counter.how,
            "steps": [_described(place) for place in placed(self.steps)],
            "stages": [
                {"fingerprint": name, "steps": [place.key for place in stage.steps]}
                for stage, name in zip(planned, names, strict=True)
            ],
            "counts": [dataclasses.asdict(count) for count in counts],
            "reports": self.reports,
        }  # fmt: skip


def check(counts: Sequence[StepCount]) -> None:
    """Check that nothing got lost: what a step takes is what the one before gave, and is kept or removed.

    Raises:
        DataError: It is not.
    """
    for before, count in zip([None, *counts], counts, strict=False):
        if not count.balances or (before is not None and before.left != count.entered):
            raise DataError(
                f"The counts of step {count.step!r} do not add up: {count}.",
                hint="This is a fault of the step.",
            )


def _described(place: Placed) -> dict[str, Any]:
    """Return what the manifest says of a step: its key, settings, shape and rules."""
    step = place.step
    rules = []
    for rule in step.rules:
        limit = None if math.isnan(rule.threshold) else rule.threshold
        signal = rule.signal and place.column(rule.signal)
        rules.append(dataclasses.asdict(rule) | {"threshold": limit, "signal": signal})
    shape = next(kind.__name__ for kind in (Filter, Editor, CorpusStep) if isinstance(step, kind))
    return {
        "key": place.key,
        "class": f"{type(step).__module__}:{type(step).__qualname__}",
        "settings": step.describe(),
        "shape": shape,
        "expensive": step.expensive,
        "rules": rules,
    }


def _corpus_step(place: Placed | None) -> CorpusStep | None:
    assert place is None or isinstance(place.step, CorpusStep)
    return None if place is None else place.step  # type: ignore[return-value]


def _part(folder: Path, name: str) -> Part:
    part = Part.find(folder, name, verify=False)
    assert part is not None, f"{name} was just written"
    return part


def _label(index: int, count: int) -> str:
    return "preparing" if count == 1 else f"preparing, stage {index + 1} of {count}"


def _metadata(decisions: Path) -> dict[str, str]:
    """Return the metadata of the schema of decisions."""
    with pa.memory_map(str(decisions)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _solved(step: CorpusStep, files: Sequence[Path], path: Path, workdir: Path) -> None:
    """Let a step decide, and write its decisions."""
    Decisions.write(step.solve(Tables(files, workdir), workdir), path)


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[Path]:
    """Give an empty folder, and delete it afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
