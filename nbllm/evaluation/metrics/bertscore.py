"""BERTScore: how well the tokens of two texts match, as an encoder sees them."""

from __future__ import annotations

import collections
import csv
import dataclasses
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nbllm.core.errors import DataError, UserError
from nbllm.core.io import expand_user, write_atomic
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import METRICS, PredictionMetric, RatioOfSums

if TYPE_CHECKING:
    import torch

    from nbllm.lm import LM

_DEFAULT_ENCODER = "all-minilm-l6-v2"
Weights = dict[int, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertScore(PredictionMetric, RatioOfSums):
    """How well the tokens of a text match those of a reference: each with the one whose vector is most like its own.

    Of several references the best counts. An empty text scores 0. The signature names the encoder by the checksum of
    its weights.

    Args:
        num_layers: Which layer's vectors are compared, 0 for the embeddings; `None` is the last.
        idf: Whether a token counts by how rare it is among the references. Where all weights are 0, as with a single
            reference, every token counts alike.
        rescale_with_baseline: Whether a score is stretched so that what unrelated texts have becomes 0.
        baseline_path: What unrelated texts have: a file in the layout of bert-score, with a line LAYER,P,R,F for each
            layer, from 0. `nb.evaluation.bertscore_baseline` makes one.

    Source: Zhang et al. 2020, arXiv:1904.09675, section 3.
    """

    module = "bertscore"
    better = "higher"
    scale = (-math.inf, 1.0)
    source = "Zhang et al. 2020, arXiv:1904.09675"

    num_layers: int | None = None
    idf: bool = False
    rescale_with_baseline: bool = False
    baseline_path: str | None = None

    def __post_init__(self) -> None:
        """Check that a baseline is given where one is needed."""
        if self.rescale_with_baseline != (self.baseline_path is not None):
            raise UserError(
                "rescale_with_baseline and baseline_path are given together: a baseline belongs to one encoder.",
                where="bertscore",
                hint="Make one with nb.evaluation.bertscore_baseline(texts, path), and give both.",
            )

    def conventions(self, columns: Columns | None = None) -> dict[str, object]:
        """Return the settings, and the encoder and layer where rows are there."""
        chosen = {**self.to_dict(), "references": "best"}
        if self.baseline_path is not None:
            chosen["baseline_path"] = os.path.basename(self.baseline_path)
        return chosen if columns is None else {"encoder": columns["encoder"][0], **chosen}

    def row(
        self, prediction: str, reference: str | Sequence[str], *, model_type: LM | str = _DEFAULT_ENCODER
    ) -> Row:
        """Return the scores of one text: with `idf`, its references alone are counted."""
        golds = [reference] if isinstance(reference, str) else reference
        return self.rows([prediction], [golds], model_type=model_type)[0]

    def rows(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        *,
        model_type: LM | str | None = None,
        lang: str | None = None,
        batch_size: int | None = None,
    ) -> list[Row]:
        """Return the scores of each text, and the encoder.

        Args:
            predictions: (row).
            references: (row), one or more each.
            model_type: The encoder: an `LM`, its folder or its name; `None` is all-MiniLM-L6-v2.
            lang: The language of the texts; the default encoder reads English ("en").
            batch_size: Of no effect: texts are read in batches of like length, which changes no score.

        Raises:
            UserError: There is no such encoder or layer, or it does not read the language.
        """
        lm = _encoder(model_type, lang)
        states = _token_states(
            lm, [*predictions, *(gold for each in references for gold in each)], self.num_layers
        )
        weights = self._weights(lm, references)
        baseline = self._baseline(_layer(lm, self.num_layers))
        name = _named(lm)
        out: list[Row] = []
        for prediction, golds in zip(predictions, references, strict=True):
            scores = [_match(states[prediction], states[gold], weights) for gold in golds]
            best = [
                (max(kind) - unrelated) / (1 - unrelated)
                for kind, unrelated in zip(zip(*scores, strict=True), baseline, strict=True)
            ]
            out.append({"precision": best[0], "recall": best[1], "bertscore_f1": best[2], "encoder": name})
        return out

    def _weights(self, lm: LM, references: Sequence[Sequence[str]]) -> _TokenWeights:
        if not self.idf:
            return _TokenWeights(dict.fromkeys(_around(lm), 0.0), 1.0)
        texts = [gold for each in references for gold in each]
        counts = collections.Counter(token for text in texts for token in set(_tokens(lm, text)))
        number = len(texts) + 1
        return _TokenWeights(
            {token: math.log(number / (count + 1)) for token, count in counts.items()}, math.log(number)
        )

    def _baseline(self, layer: int) -> tuple[float, float, float]:
        """Return the precision, recall and F1 of unrelated texts: 0 where scores are not rescaled."""
        if self.baseline_path is None:
            return 0.0, 0.0, 0.0
        try:
            with open(self.baseline_path, encoding="utf-8", newline="") as file:
                lines = list(csv.reader(file))[1:]
            _, precision, recall, f1 = map(float, lines[layer])
        except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
            raise DataError(
                f"This is no baseline with a layer {layer}: {error}.",
                where=self.baseline_path,
                hint="Its first line is LAYER,P,R,F; below, one line for each layer, from 0.",
            ) from None
        return precision, recall, f1

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the scores, and one for each row."""
        scores = columns[self.columns[0]]
        return scores, scores * 0 + 1

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the scores of each example, and what they were made with in bert-score's words."""
        layer = "" if self.num_layers is None else f"_L{self.num_layers}"
        idf, rescaled = "idf" if self.idf else "no-idf", "-rescaled" * self.rescale_with_baseline
        hashcode = f"{columns['encoder'][0]}{layer}_{idf}{rescaled}"
        return {self.key: columns[self.columns[0]].tolist(), "hashcode": hashcode}


@dataclasses.dataclass(frozen=True)
class _TokenWeights:
    """How much each token counts; those that are not named count `otherwise`."""

    named: Weights
    otherwise: float

    def of(self, tokens: Sequence[int]) -> list[float]:
        """Return the weights of tokens, which sum to 1."""
        found = [self.named.get(token, self.otherwise) for token in tokens]
        total = sum(found)
        return [weight / total for weight in found] if total > 0 else [1 / len(found)] * len(found)


@dataclasses.dataclass(frozen=True)
class _Read:
    """A text's tokens and their unit vectors: (token), (token, hidden)."""

    tokens: list[int]
    vectors: torch.Tensor
    empty: bool


def _encoder(model: LM | str | None, lang: str | None) -> LM:
    from nbllm.lm import LM
    from nbllm.opening import load

    if model is None and lang not in (None, "en"):
        raise UserError(
            f"The default encoder, {_DEFAULT_ENCODER}, reads English, not {lang!r}.",
            where="bertscore",
            hint="Give an encoder that does: model_type=lm, or its folder.",
        )
    return model if isinstance(model, LM) else load(model or _DEFAULT_ENCODER)


def _named(lm: LM) -> str:
    from nbllm.evaluation.provenance import model_fingerprint

    return f"{lm.config.family}-{model_fingerprint(lm)[:12]}"


def _around(lm: LM) -> list[int]:
    """Return the tokens that the tokenizer puts before and after a text."""
    from nbllm.data.encoding import added_around

    before, after = added_around(lm.tokenizer)
    return before + after


def _tokens(lm: LM, text: str) -> list[int]:
    """Return the tokens of a text between those that the tokenizer puts around it; a long text is cut."""
    from nbllm.data.encoding import added_around, encode_text

    before, after = added_around(lm.tokenizer)
    most = lm.config.max_positions - len(before) - len(after)
    return before + encode_text(lm.tokenizer, text.strip())[:most] + after


def _token_states(lm: LM, texts: Sequence[str], num_layers: int | None) -> dict[str, _Read]:
    """Return what the encoder makes of each different text."""
    import torch

    from nbllm.models.embedding import token_states

    tokens = {text: _tokens(lm, text) for text in dict.fromkeys(texts)}
    readable = [text for text, ids in tokens.items() if ids]
    with lm.lock:
        states = token_states(lm.model, [tokens[text] for text in readable], num_layers=num_layers)
    vectors = {
        text: torch.nn.functional.normalize(each, dim=-1) for text, each in zip(readable, states, strict=True)
    }
    around = len(_around(lm))
    return {
        text: _Read(ids, vectors.get(text, torch.empty(0, lm.config.hidden_size)), len(ids) == around)
        for text, ids in tokens.items()
    }


def _match(prediction: _Read, gold: _Read, weights: _TokenWeights) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the greedy match of two texts."""
    import torch

    if prediction.empty or gold.empty:
        return 0.0, 0.0, 0.0
    similar = prediction.vectors @ gold.vectors.T
    precision, recall = (
        float(similar.amax(dim) @ torch.tensor(weights.of(read.tokens)))
        for dim, read in ((1, prediction), (0, gold))
    )
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


def _layer(lm: LM, num_layers: int | None) -> int:
    return lm.config.num_layers if num_layers is None else num_layers


def bertscore_baseline(
    texts: Sequence[str], path: str | os.PathLike[str], *, model_type: LM | str | None = None, seed: int = 0
) -> Path:
    """Write what unrelated texts score, layer by layer: a `baseline_path` for "bertscore".

    Every text is compared with another one, drawn at random; the means are those of all pairs.

    Args:
        texts: Unrelated sentences of the kind to be judged, at least two different ones; some thousands are good.
        path: The file, in the layout of bert-score.
        model_type: The encoder that it is for: an `LM`, its folder or its name; `None` is all-MiniLM-L6-v2.
        seed: Of the pairs.

    Returns:
        The path.

    Raises:
        DataError: There are fewer than two different texts.

    Source: Zhang et al. 2020, arXiv:1904.09675, section 3, "Baseline rescaling".
    """
    different = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(different) < 2:
        raise DataError("A baseline needs at least two different texts that are not empty.")
    random.Random(seed).shuffle(different)
    others = [*different[1:], different[0]]
    lm = _encoder(model_type, None)
    lines = ["LAYER,P,R,F"]
    for layer in range(lm.config.num_layers + 1):
        rows = BertScoreF1(num_layers=layer).rows(different, [[other] for other in others], model_type=lm)
        means = (
            math.fsum(float(row[name]) for row in rows) / len(rows)  # type: ignore[arg-type]
            for name in ("precision", "recall", "bertscore_f1")
        )
        lines.append(f"{layer},{','.join(map(repr, means))}")
    path = expand_user(path)
    write_atomic(path, "\n".join(lines) + "\n")
    return path


@METRICS.register("bertscore_precision")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BertScorePrecision(BertScore):
    """How well the tokens of a text match those of its reference.

    Source: Zhang et al. 2020, arXiv:1904.09675, section 3.
    """

    name = "bertscore_precision"
    key = "precision"
    label = "BERTScore precision"
    note = "similarity of each token to its nearest of the reference"
    columns: ClassVar[tuple[str, ...]] = ("precision",)


@METRICS.register("bertscore_recall")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BertScoreRecall(BertScore):
    """How well the tokens of the reference match those of a text.

    Source: Zhang et al. 2020, arXiv:1904.09675, section 3.
    """

    name = "bertscore_recall"
    key = "recall"
    label = "BERTScore recall"
    note = "similarity of each token of the reference to its nearest"
    columns: ClassVar[tuple[str, ...]] = ("recall",)


@METRICS.register("bertscore_f1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BertScoreF1(BertScore):
    """The harmonic mean of BERTScore's precision and recall of each text.

    Source: Zhang et al. 2020, arXiv:1904.09675, section 3.
    """

    name = "bertscore_f1"
    key = "f1"
    label = "BERTScore"
    note = "harmonic mean of both similarities"
    columns: ClassVar[tuple[str, ...]] = ("bertscore_f1",)
