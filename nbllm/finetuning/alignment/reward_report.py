"""What a reward model is worth: how often it prefers the better answer, and how far its certainty can be trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.proportions import wilson
from nbllm.core.report import (
    Bar,
    Bars,
    Chart,
    KeyValues,
    Measurement,
    Measurements,
    Report,
    Rows,
    Subject,
    Table,
)
from nbllm.core.report.sections import Line
from nbllm.core.seeding import derive
from nbllm.data.provenance import source_of
from nbllm.finetuning.alignment.preference_rows import EncodedPair, Found, whole_pairs
from nbllm.inference.reward import score_whole
from nbllm.lm import LM
from nbllm.models.network import check_can

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
_RESAMPLES = 1000
_BINS = 5  # of certainty, from a half to 1
_SHOWN = 8  # of the pairs that it gets wrong


class Scored(NamedTuple):
    """Pairs and their scores.

    Attributes:
        pairs: The pairs, as they were read.
        scores: (pair, 2), those of the chosen answers first.
        lengths: (pair, 2), numbers of tokens.
    """

    pairs: list[EncodedPair]
    scores: Floats
    lengths: Floats

    @property
    def margin(self) -> Floats:
        """By how much the chosen answer's score is higher: (pair,)."""
        return self.scores[:, 0] - self.scores[:, 1]


def reward_report(lm: LM, pairs: Any, *, sequence_length: int | None = None) -> Report:
    """Measure a reward model on held-out pairs.

    The report has its accuracy, the log-loss and the calibration of the probabilities that differences of scores stand
    for, what length explains (a model that likes long answers can be right without reading them), how the scores of
    better and worse answers lie, and the pairs on which it is wrong and most certain.

    Args:
        lm: The reward model, as `nb.load(run)` opens it.
        pairs: Pairs that it was not trained on, as for `nb.finetune`.
        sequence_length: Of how many tokens a text may be, as in training; None: the context.

    Raises:
        UserError: The model has no score head.
        DataError: No pair can be used; the reasons are counted.
    """
    if not isinstance(lm, LM):
        raise UserError(
            f"The first argument must be a reward model, not {type(lm).__name__}.", hint="nb.load(run)"
        )
    check_can(lm.model, "reward")
    found = whole_pairs(pairs, lm, sequence_length or lm.config.max_positions)
    kept = found.kept_or_raise()
    texts = [side.tokens.tolist() for _, *sides in kept for side in sides]
    with lm.lock:
        scores = score_whole(lm.model, texts).double().numpy().reshape(-1, 2)
    lengths = np.array([len(text) for text in texts], float).reshape(-1, 2)
    return _report(lm, found, Scored(kept, scores, lengths), source_of(pairs))


def _report(lm: LM, found: Found[EncodedPair], scored: Scored, data: str) -> Report:
    subject = Subject(task="reward", data=data, fingerprint=_fingerprint(scored))
    left_out = [(f"left out: {reason}", len(rows)) for reason, rows in found.left_out.items()]
    entries: list[tuple[str, str | int]] = [
        ("model", lm.origin or "new"),
        ("pairs", len(scored.pairs)),
        (f"cut at {found.length:,} tokens", len(found.truncated)),
        *left_out,
    ]
    return Report(f"Reward model {lm.origin}".strip()).add(
        Measurements(title="How good it is", measurements=_figures(scored, subject), prominent=True),
        _calibration(scored),
        _length(scored),
        _distribution(scored),
        _mistakes(scored),
        Rows(
            title="Every pair",
            subject=subject,
            columns={
                "chosen": tuple(_answer(pair.chosen) for pair, *_ in scored.pairs),
                "rejected": tuple(_answer(pair.rejected) for pair, *_ in scored.pairs),
                "score_chosen": tuple(scored.scores[:, 0].tolist()),
                "score_rejected": tuple(scored.scores[:, 1].tolist()),
                "tokens_chosen": tuple(scored.lengths[:, 0].astype(int).tolist()),
                "tokens_rejected": tuple(scored.lengths[:, 1].astype(int).tolist()),
            },
            num_examples=len(scored.pairs),
            unit="pairs",
        ),
        KeyValues(title="What was measured", entries=tuple(entries)),
    )


def _figures(scored: Scored, subject: Subject) -> tuple[Measurement, ...]:
    margin, count = scored.margin, len(scored.pairs)
    right = float((margin > 0).sum())

    def log_loss(part: Floats) -> float:
        return float(np.logaddexp(0, -part).mean())

    def brier(part: Floats) -> float:
        return float(((1 - _sigmoid(part)) ** 2).mean())

    def resampled(name: str, figure: Callable[[Floats], float], note: str) -> Measurement:
        return Measurement(
            name=name, value=figure(margin), interval=_bootstrap(margin, figure), confidence=CONFIDENCE,
            method="bootstrap", note=note, better="lower", subject=subject,
        )  # fmt: skip

    return (
        Measurement(
            name="accuracy", value=right / count, interval=wilson(right, count, CONFIDENCE), confidence=CONFIDENCE,
            method="wilson", note="the chosen answer has the higher score", better="higher", subject=subject,
        ),
        resampled("log-loss", log_loss, "nats; .693 is that of tossing a coin"),
        resampled("Brier score", brier, ".25 is that of tossing a coin"),
        resampled("calibration error", calibration_error, f"expected, in {_BINS} bins of equal width"),
        Measurement(name="margin", value=float(margin.mean()), note="chosen less rejected, mean", subject=subject),
    )  # fmt: skip


def calibration_error(margin: Floats) -> float:
    """Return the expected calibration error: by how much certainty and accuracy differ, weighed over bins.

    Args:
        margin: (pair,) the chosen answers' scores less the rejected ones'.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3.
    """
    return sum(each.pairs * abs(each.certainty - each.accuracy) for each in reliability(margin)) / len(margin)


class Bin(NamedTuple):
    """Pairs of like certainty.

    Attributes:
        pairs: How many there are.
        certainty: The mean probability that the answer of the higher score is better, as the model states it.
        right: How often it is.
    """

    pairs: int
    certainty: float
    right: int

    @property
    def accuracy(self) -> float:
        """The share of the pairs on which the model is right."""
        return self.right / self.pairs


def reliability(margin: Floats) -> list[Bin]:
    """Return the bins that hold pairs, of rising certainty; arguments as `calibration_error`."""
    certainty = _sigmoid(np.abs(margin))
    places = np.minimum(((certainty - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    return [
        Bin(int(inside.sum()), float(certainty[inside].mean()), int((margin[inside] > 0).sum()))
        for inside in (places == place for place in range(_BINS))
        if inside.any()
    ]


def _calibration(scored: Scored) -> Chart:
    bins = reliability(scored.margin)
    certainty = tuple(each.certainty for each in bins)
    counts = ", ".join(f"{each.pairs:,} at {each.certainty:.2f}" for each in bins)
    return Chart(
        title="Calibration",
        note="Of a calibrated model both lines are one: of the pairs on which it is 80 % certain it has 80 % right.",
        x_label="certainty: sigmoid of the scores' difference",
        y_label="share of pairs that it has right",
        lines=(
            Line(name="this model", x=certainty, y=tuple(each.accuracy for each in bins)),
            Line(name="calibrated", x=(0.5, 1.0), y=(0.5, 1.0)),
        ),
        caption=f"Pairs in the bins: {counts}.",
    )


def _length(scored: Scored) -> Bars:
    longer = scored.lengths[:, 0] - scored.lengths[:, 1]
    right = scored.margin > 0
    groups = {
        "all pairs": np.ones(len(right), bool),
        "the better answer is longer": longer > 0,
        "it is shorter": longer < 0,
    }
    bars = [_bar(name, right[inside]) for name, inside in groups.items() if inside.any()]
    differing = longer != 0
    if differing.any():
        bars.append(_bar("to say that the longer one is better", (longer > 0)[differing]))
    varies = len(longer) > 1 and longer.std() > 0 and scored.margin.std() > 0
    related = f"{np.corrcoef(scored.margin, longer)[0, 1]:.2f}" if varies else "undefined"
    return Bars(
        title="What length explains",
        note=f"The differences of scores and of lengths correlate by {related}. The last bar looks at lengths alone.",
        bars=tuple(bars),
        x_label="accuracy",
        unit="pairs",
        marked=0.5,
    )


def _bar(name: str, right: NDArray[np.bool_]) -> Bar:
    hits, count = float(right.sum()), len(right)
    return Bar(name=name, value=hits / count, interval=wilson(hits, count, CONFIDENCE), count=count)


def _distribution(scored: Scored) -> Chart:
    edges = np.histogram_bin_edges(scored.scores, bins=min(30, max(5, len(scored.pairs) // 4)))
    middles = tuple(((edges[1:] + edges[:-1]) / 2).tolist())
    lines = [
        Line(
            name=name,
            x=middles,
            y=tuple(np.histogram(scored.scores[:, side], edges)[0].astype(float).tolist()),
        )
        for side, name in enumerate(("chosen", "rejected"))
    ]
    return Chart(
        title="Scores", x_label="score", y_label="answers", lines=tuple(lines), minor=True,
        caption="How many answers have a score, of the better and of the worse ones.",
    )  # fmt: skip


def _mistakes(scored: Scored) -> Table:
    order = np.argsort(scored.margin)[:_SHOWN]
    rows = [
        (
            _answer(scored.pairs[place][0].chosen, 300),
            _answer(scored.pairs[place][0].rejected, 300),
            float(scored.scores[place, 0]),
            float(scored.scores[place, 1]),
        )
        for place in order.tolist()
        if scored.margin[place] <= 0
    ]
    return Table(
        title="Where it is wrong and most certain",
        header=("better", "worse", "its score", "the worse one's"),
        rows=tuple(rows),
        caption="Ends of the answers." if rows else "It is wrong on none.",
    )


def _answer(example: Any, most: int = 1000) -> str:
    """Return the last thing that is said, or its end where it is long."""
    text = str(example.messages[-1]["content"] if example.messages else example.completion).strip()
    return text if len(text) <= most else f"…{text[-most:]}"


def _bootstrap(margin: Floats, figure: Callable[[Floats], float]) -> tuple[float, float] | None:
    if len(margin) < 2:
        return None
    rng = np.random.default_rng(derive(0, "reward report"))
    found = [figure(margin[rng.integers(len(margin), size=len(margin))]) for _ in range(_RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail]).tolist()
    return low, high


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _fingerprint(scored: Scored) -> str:
    digest = hashlib.sha256()
    for _, *sides in scored.pairs:
        for side in sides:
            digest.update(np.int64(len(side.tokens)).tobytes() + side.tokens.astype(np.int64).tobytes())
    return digest.hexdigest()
