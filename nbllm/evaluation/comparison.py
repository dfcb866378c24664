"""Two reports of the same texts compared: what changed from one to the other, and how sure that is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np

from nbllm.core.errors import UserError
from nbllm.core.quantities import fixed, iso_minute
from nbllm.core.report.figures import Change, PerDocument, Subject
from nbllm.core.report.report import Report
from nbllm.core.report.sections import Changes
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.metrics.catalogue import METRICS
from nbllm.evaluation.statistics import Difference, difference_of_ratios


def check_comparable(before: Report, subjects: Collection[Subject]) -> None:
    """Check that an earlier report measured just these subjects.

    Raises:
        UserError: It is no report that was measured, or differs in a task, a text, its documents or the stride.
    """
    if not isinstance(before, Report):
        raise UserError(
            f"against must be a report, not {type(before).__name__}.",
            hint="Give what nb.evaluate returned, or nb.Report.load(path) of its .json.",
        )
    earlier = {kept.subject for kept in _measured(before)}
    if not earlier:
        raise UserError("The report given as against holds nothing that was measured by document.")
    if earlier == set(subjects):
        return
    now = {(subject.task, subject.text): subject for subject in subjects}
    then = {(subject.task, subject.text): subject for subject in earlier}
    if now.keys() != then.keys():
        raise UserError(
            f"The earlier report measured {_words(earlier)}; this one is to measure {_words(subjects)}.",
            hint="Give both the same tasks and texts.",
        )
    key = next(key for key in now if now[key] != then[key])
    text = f"the text {key[1]!r}" if key[1] else "the text"
    if now[key].fingerprint != then[key].fingerprint:
        raise UserError(
            f"The documents of {text} are not those that the earlier report measured.",
            hint="Give both the same documents in the same order, and the same max_documents.",
        )
    raise UserError(
        f"The earlier report measured {text} with stride={then[key].stride}, this one has {now[key].stride}.",
        hint="Give both the same stride.",
    )


def comparison_section(before: Report, after: Report, config: EvaluationConfig) -> Changes:
    """Return what changed: each figure before and after, the change, and the interval of the change.

    A figure per token is left out where the two models cut the text into different tokens. Where a measurement
    was interrupted, both are compared on the documents that both measured.

    Args:
        before: The earlier report.
        after: The later one, of the same subjects.
        config: Confidence, resamples and seed of the intervals.
    """
    earlier = {(kept.subject, kept.figure): kept for kept in _measured(before)}
    changes: list[Change] = []
    notes = [f"Before: {before.title}, measured {iso_minute(before.created)}."]
    told: set[Subject] = set()
    for now in _measured(after):
        name = now.subject.name(now.figure)
        then = earlier.get((now.subject, now.figure))
        num_documents = 0 if then is None else min(len(then.numerators), len(now.numerators))
        if then is None:
            notes.append(f"The earlier report lacks {name}.")
        elif then.denominators[:num_documents] != now.denominators[:num_documents]:
            notes.append(f"{_sentence_case(name)} is left out: the models count by different tokens.")
        else:
            found = _difference(then, now, num_documents, config)
            changes.append(
                Change(
                    name=name,
                    before=found.before,
                    after=found.after,
                    interval=found.interval,
                    confidence=config.confidence,
                )
            )
            if now.subject not in told:  # the first figure of a task is the one to tell
                told.add(now.subject)
                notes.append(_told(name, found))
                if len(then.numerators) != len(now.numerators):
                    notes.append(
                        f"A measurement was interrupted: compared on the first {num_documents} documents."
                    )
    return Changes(
        title="Before and after",
        note=" ".join(notes),
        changes=tuple(changes),
        caption=(
            "Change is after minus before. Its interval is that of the paired difference: each of "
            f"{config.resamples:,} bootstrap resamples draws the same documents for both."
        ),
    )


def _measured(report: Report) -> Iterator[PerDocument]:
    return (metric.per_document for metric in report.metrics() if metric.per_document is not None)


def _difference(
    then: PerDocument, now: PerDocument, num_documents: int, config: EvaluationConfig
) -> Difference:
    finish = next(METRICS[name].finish for name in METRICS if METRICS[name].label == now.figure)
    old, new = (
        (np.array(kept.numerators[:num_documents]), np.array(kept.denominators[:num_documents]))
        for kept in (then, now)
    )
    return difference_of_ratios(old, new, config, finish=finish)


def _told(name: str, found: Difference) -> str:
    """Return the change in a sentence."""
    if found.value == 0:
        return f"{_sentence_case(name)} did not change."
    verb = "fell" if found.value < 0 else "rose"
    before, after = fixed(found.before), fixed(found.after, like=found.before)
    sentence = f"{_sentence_case(name)} {verb} from {before} to {after}"
    if found.before:
        sentence += f", by {abs(found.value / found.before):.1%}"
    if found.interval is not None and found.interval[0] <= 0 <= found.interval[1]:
        sentence += "; the interval of the change includes zero"
    return f"{sentence}."


def _words(subjects: Iterable[Subject]) -> str:
    """Return "perplexity on mine, perplexity on other"."""
    return ", ".join(sorted(subject.name(subject.task) for subject in subjects))


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
