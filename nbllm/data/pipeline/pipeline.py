"""The pipeline: documents from files or a data set through steps, in bounded memory, resumed after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from nbllm.core.cache import make_folder
from nbllm.core.errors import UserError
from nbllm.core.io import expand_user
from nbllm.data.pipeline.executing import executor_on
from nbllm.data.pipeline.prepared import Prepared
from nbllm.data.pipeline.running import Run
from nbllm.data.pipeline.step import Step
from nbllm.data.pipeline.tokens import TokenCounter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PART_BYTES = 1 << 26
LOCK = ".lock"


class Pipeline:
    """Steps that prepare text, in their order.

    Args:
        steps: Steps, and lists of steps.
        tokenizer: Counts the tokens of the manifest and the funnel; without one they are estimated.
        part_bytes: About how much text one file of the output was made of. A kill loses at most the parts that are
            being written.

    Raises:
        UserError: Something is no step, or two rules of a step have one name.
    """

    def __init__(
        self,
        steps: Iterable[Step | Iterable[Step]],
        *,
        tokenizer: PreTrainedTokenizerFast | None = None,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.steps = _flat(steps)
        self.counter = TokenCounter(tokenizer)
        if part_bytes < 1:
            raise UserError(f"part_bytes must be at least 1, not {part_bytes!r}.")
        self.part_bytes = part_bytes

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(map(repr, self.steps))}])"

    def describe(self) -> list[dict[str, Any]]:
        """Return what each step says of itself, as plain values."""
        return [step.describe() for step in self.steps]

    def run(
        self,
        source: Any,
        out: str | os.PathLike[str],
        *,
        on: Any = None,
        workers: int | None = None,
        on_error: str = "raise",
        **reading: Any,
    ) -> Prepared:
        """Take all documents of a source through the steps, and write what is kept.

        In `out` are then `data/part-*.parquet`; `ledger.parquet`, with a row for everything that was removed and why
        (it quotes what was removed, personal data too, where a step does not mask it); `signals.parquet`, with what
        was measured of every document; and `manifest.json`, with the counts of each step and all checksums. They do
        not depend on the number of workers, on the order of the files, or on whether the run was interrupted. The
        folder `stages` has what lies between steps that need the whole corpus: so a stage whose steps, code and input
        did not change is not run again. It may be deleted.

        A document's id is made of its file's name and its place in there, so it stays the same when files are added.
        Documents come in the order of their ids: those of a file in its order, the files in that of a hash of their
        names.

        Args:
            source: A file, a folder or a pattern; a list of these; a data set, or anything else that
                `nbllm.data.load` takes.
            out: The folder to write. A run that was interrupted or killed goes on where it was.
            on: A `distributed.Client`: its workers do the work; they must see the files of `source` and `out` at the
                same paths. Without one, threads of this process.
            workers: How many threads; as many as there are cores if not given.
            on_error: "raise" stops at the first line or file that cannot be used; "skip" leaves it out, counts it in
                the manifest and warns at the end.
            **reading: `column`, `sample_by`, `encoding`, `split` and `subset` of `nbllm.data.load`.

        Raises:
            DataError: A file cannot be read, or the disk is full; what was finished is kept.
            UserError: A setting or a step is wrong.
        """
        folder = make_folder(expand_user(out).absolute())
        run = Run(
            self.steps, self.counter, self.part_bytes, folder, executor_on(on, workers), on_error=on_error
        )
        try:
            with FileLock(folder / LOCK, timeout=0):
                return run.run(source, reading)
        except Timeout:
            raise UserError(
                "Another process is writing this folder.",
                where=folder,
                hint="Wait for it, or name another folder.",
            ) from None


def _flat(steps: Any) -> list[Step]:
    """Return steps in one list.

    Raises:
        UserError: Something is no step, or two rules of one have the same name.
    """
    if isinstance(steps, Step):
        steps = [steps]
    if isinstance(steps, str) or not isinstance(steps, Iterable):
        raise UserError(
            f"{steps!r} is no step.", hint="Give a list of steps: [nbllm.data.quality('gopher'), ...]."
        )
    flat: list[Step] = []
    for step in steps:
        if isinstance(step, Step):
            names = [rule.name for rule in step.rules]
            if len(set(names)) < len(names):
                raise UserError(f"Two rules of step {step.title!r} have one name.")
            flat.append(step)
        else:
            flat += _flat(step)
    return flat
