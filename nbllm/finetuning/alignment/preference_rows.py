"""From preferences to rows that a run trains on; what is left out or cut is counted and named."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import progress
from nbllm.data.sample_store import write_samples
from nbllm.finetuning.alignment.log_probabilities import log_probabilities, next_tokens
from nbllm.finetuning.alignment.preferences import Pair, Verdict, read_pairs, read_verdicts
from nbllm.finetuning.examples import Example
from nbllm.finetuning.preparing import Prepared
from nbllm.finetuning.rows import rows_of
from nbllm.finetuning.tokens import tokenize
from nbllm.inference.reward import encode_whole
from nbllm.models.batching import batches
from nbllm.nn.compute.decisions import ComputeChoices, use_choices
from nbllm.objectives.base import IGNORED
from nbllm.training.precision import DTYPES
from nbllm.training.run_choices import make_choices

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.models.network import CausalNetwork
    from nbllm.training.config import TrainConfig

T = TypeVar("T")
_BATCH_TOKENS = 4096  # of the reference's forward passes


class Encoded(NamedTuple):
    """A prompt and its answer as tokens.

    Attributes:
        tokens: (token,) ids.
        targets: (token,) those of the answer; -100 elsewhere.
        is_cut: Whether it was longer than a row.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    is_cut: bool


EncodedPair: TypeAlias = tuple[Pair, Encoded, Encoded]


def encode(tokenizer: Any, example: Example, length: int) -> Encoded:
    """Return the tokens of a prompt and its answer, at most `length`; what is longer is cut at the end.

    Raises:
        DataError: The template cannot render it.
    """
    made = tokenize(tokenizer, example, train_on="assistant")
    targets = np.where(made.trained, made.tokens, IGNORED)
    targets[:1] = IGNORED  # nothing stands before it
    return Encoded(made.tokens[:length], targets[:length], len(made.tokens) > length)


def prepare_pairs(data: Any, lm: LM, config: TrainConfig, *, reference: bool) -> Prepared:
    """Encode pairs into rows.

    Columns are "chosen" and "rejected", (row, position) tokens, "chosen_targets" and "rejected_targets", those of the
    answers alone, the lengths of both, "margin", "weight" and "mean_length", how many tokens the chosen texts have on
    average; and with a reference "reference_chosen" and "reference_rejected", the log-probabilities of the answers
    under the model as it is now. These are exact: the reference never changes, and nothing is dropped out.

    Args:
        data: Rows in the layouts of `preferences`, from wherever `finetuning.rows` reads them.
        lm: The model.
        config: The run's.
        reference: Whether the reference's log-probabilities are needed.

    Raises:
        DataError: No pair is left; the reasons are counted.
    """
    length, tokenizer = config.sequence_length, lm.tokenizer
    found = Found[EncodedPair](length)
    for pair in found.read(data, read_pairs, "pairs"):
        with found.attempt():
            sides = [encode(tokenizer, each, length) for each in (pair.chosen, pair.rejected)]
            found.check_answers(sides)
            if np.array_equal(sides[0].tokens, sides[1].tokens):
                raise DataError(f"both answers are the same within {length} tokens")
            found.keep((pair, *sides), sides)
    pairs = found.kept_or_raise()
    columns: dict[str, NDArray[Any]] = {}
    for place, name in ((1, "chosen"), (2, "rejected")):
        columns |= _columns([entry[place] for entry in pairs], name, length)  # type: ignore[misc]  # by place
    columns |= {
        "margin": np.array([pair.margin for pair, *_ in pairs], np.float32),
        "weight": np.array([pair.weight for pair, *_ in pairs], np.float32),
        "mean_length": np.full(len(pairs), columns["chosen_length"].mean() - 1, np.float32),
    }
    if reference:
        for name in ("chosen", "rejected"):
            columns[f"reference_{name}"] = _reference(lm, config, columns, name)
    num_bytes = sum(pair.chosen.num_bytes + pair.rejected.num_bytes for pair, *_ in pairs)
    return found.prepared(columns, num_bytes, lm)


def prepare_whole_pairs(data: Any, lm: LM, config: TrainConfig) -> Prepared:
    """Encode pairs into rows for a network that scores whole texts, as `LM.reward` encodes them.

    Columns are "chosen" and "rejected", (row, position) tokens, the lengths of both, "margin" and "weight".

    Raises:
        DataError: No pair is left; the reasons are counted.
    """
    length = config.sequence_length
    found = whole_pairs(data, lm, length)
    pairs = found.kept_or_raise()
    columns: dict[str, NDArray[Any]] = {
        "margin": np.array([pair.margin for pair, *_ in pairs], np.float32),
        "weight": np.array([pair.weight for pair, *_ in pairs], np.float32),
    }
    for place, name in ((1, "chosen"), (2, "rejected")):
        made = _columns([entry[place] for entry in pairs], name, length)  # type: ignore[misc]  # by place
        columns |= {name: made[name], f"{name}_length": made[f"{name}_length"]}
    num_bytes = sum(pair.chosen.num_bytes + pair.rejected.num_bytes for pair, *_ in pairs)
    return found.prepared(columns, num_bytes, lm)


def whole_pairs(data: Any, lm: LM, length: int) -> Found[EncodedPair]:
    """Read pairs for a network that scores whole texts.

    Args:
        data: Rows in the layouts of `preferences`.
        lm: The model.
        length: Of how many tokens a text may be; what is longer is cut at the end.
    """
    both_directions = lm.config.network == "encoder"
    found = Found[EncodedPair](length)
    for pair in found.read(data, read_pairs, "pairs"):
        with found.attempt():
            sides = [
                _whole(lm.tokenizer, each, length, both_directions=both_directions)
                for each in (pair.chosen, pair.rejected)
            ]
            if np.array_equal(sides[0].tokens, sides[1].tokens):
                raise DataError(f"both answers are the same within {length} tokens")
            found.keep((pair, *sides), sides)
    return found


def _whole(tokenizer: Any, example: Example, length: int, *, both_directions: bool) -> Encoded:
    """Return a whole text, all tokens of which are read."""
    text = example.messages or example.prompt + example.completion
    try:
        tokens = np.array(encode_whole(tokenizer, text, both_directions=both_directions), np.int64)
    except UserError as error:
        raise DataError(f"The conversation cannot be rendered: {error.what}") from error
    return Encoded(tokens[:length], tokens[:length], len(tokens) > length)


def prepare_verdicts(data: Any, lm: LM, config: TrainConfig) -> Prepared:
    """Encode verdicts into rows.

    Columns are "answer" and "other", (row, position) tokens, "answer_targets" and "other_targets", "desirable" (0 or
    1), and the log-probabilities under the model as it is now, "reference_answer" and "reference_other". The other text
    is the row's prompt with the answer of the row before, by which the policy's divergence is estimated.

    Raises:
        DataError: No verdict is left; the reasons are counted.
    """
    length, tokenizer = config.sequence_length, lm.tokenizer
    found = Found[tuple[Verdict, Encoded]](length)
    for verdict in found.read(data, read_verdicts, "labels"):
        with found.attempt():
            made = encode(tokenizer, verdict.example(), length)
            found.check_answers([made])
            found.keep((verdict, made), [made])
    kept = found.kept_or_raise()
    columns = _columns([made for _, made in kept], "answer", length)
    before = [kept[-1], *kept[:-1]]
    others = [
        encode(tokenizer, verdict.example(other), length)
        for (verdict, _), (other, _) in zip(kept, before, strict=True)
    ]
    columns |= _columns(others, "other", length)
    columns["desirable"] = np.array([verdict.desirable for verdict, _ in kept], np.float32)
    for name in ("answer", "other"):
        columns[f"reference_{name}"] = _reference(lm, config, columns, name)
    num_bytes = sum(verdict.example().num_bytes for verdict, _ in kept)
    return found.prepared(columns, num_bytes, lm)


class Found(Generic[T]):
    """What is read of rows, and what is left out.

    Attributes:
        kept: What can be used.
        truncated: The numbers of the rows that are cut.
        left_out: Those of the rows that are left out, by the reason.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.kept: list[T] = []
        self.truncated: list[str] = []
        self.left_out: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        self._label = ""

    def read(self, data: Any, read: Callable[[object], list[Any]], kind: str) -> Iterator[Any]:
        """Yield what each row holds."""
        rows = rows_of(data)
        with progress(f"encoding the {kind}", len(rows) if isinstance(rows, Sized) else 0, " rows") as bar:
            for number, row in enumerate(rows):
                bar.update(1)
                self._label = str(number)
                found: list[Any] = []
                with self.attempt():
                    found = read(row)
                yield from found

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Within the block, what cannot be used is counted."""
        try:
            yield
        except DataError as error:
            self.left_out[error.what].append(self._label)

    def check_answers(self, sides: Sequence[Encoded]) -> None:
        """Refuse an entry of which an answer is cut away.

        Raises:
            DataError: One is.
        """
        if not all((side.targets != IGNORED).any() for side in sides):
            raise DataError(f"no token of an answer within {self.length} tokens")

    def keep(self, entry: T, sides: Sequence[Encoded]) -> None:
        """Keep an entry, and note whether it was cut."""
        if any(side.is_cut for side in sides):
            self.truncated.append(self._label)
        self.kept.append(entry)

    def kept_or_raise(self) -> list[T]:
        """Return what was kept.

        Raises:
            DataError: Nothing was.
        """
        if not self.kept:
            reasons = "; ".join(f"{len(rows):,} of them: {reason}" for reason, rows in self.left_out.items())
            raise DataError(
                "There is nothing to train on.",
                hint=reasons or "Give preferences: there are none.",
                where="finetune",
            )
        return self.kept

    def prepared(self, columns: dict[str, NDArray[Any]], num_bytes: int, lm: LM) -> Prepared:
        """Write the columns, and return them with what became of the rest."""
        count = len(self.kept)
        store = write_samples(
            columns, row_length=self.length, num_examples=count, num_bytes=num_bytes,
            vocab_size=len(lm.tokenizer),
        )  # fmt: skip
        trained = sum(
            int((column != IGNORED).sum()) for name, column in columns.items() if name.endswith("_targets")
        ) or sum(int(column.sum()) for name, column in columns.items() if name.endswith("_length"))
        left_out = {reason: tuple(rows) for reason, rows in self.left_out.items()}
        return Prepared(store, count, trained, tuple(self.truncated), left_out)


def _columns(texts: Sequence[Encoded], name: str, length: int) -> dict[str, NDArray[Any]]:
    tokens = np.zeros((len(texts), length), np.int32)
    targets = np.full((len(texts), length), IGNORED, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text.tokens)] = text.tokens
        targets[row, : len(text.targets)] = text.targets
    lengths = np.array([len(text.tokens) for text in texts], np.int32)
    return {name: tokens, f"{name}_targets": targets, f"{name}_length": lengths}


def _reference(
    lm: LM, config: TrainConfig, columns: dict[str, NDArray[Any]], name: str
) -> NDArray[np.float32]:
    """Return the log-probabilities of answers under the model as it is, computed as the run computes."""
    tokens, targets, lengths = (columns[f"{name}{suffix}"] for suffix in ("", "_targets", "_length"))
    out = np.empty(len(tokens), np.float32)
    order = sorted(range(len(tokens)), key=lambda row: -int(lengths[row]))
    label = f"the reference's log-probabilities ({name})"
    with _as_the_run_computes(lm, config) as network, progress(label, len(order), " texts") as bar:
        for rows in batches(order, lambda row: int(lengths[row]), _BATCH_TOKENS):
            longest = int(lengths[rows[0]])
            made = next_tokens(tokens[rows], targets[rows], longest)
            inputs, after = (torch.from_numpy(array).to(network.device) for array in made)
            out[rows] = log_probabilities(network, inputs, after).sums().cpu().numpy()
            bar.update(len(rows))
    return out


@contextlib.contextmanager
def _as_the_run_computes(lm: LM, config: TrainConfig) -> Iterator[Any]:
    """Yield the model in the dtype, on the device and with the kernels of the run, without gradients."""
    choices = make_choices(config, lm.config)["choices"]
    dtype, device = DTYPES[choices["precision"]], torch.device(choices["device"])
    network = lm.causal_network_for("score")
    if (network.dtype, network.device.type) != (dtype, device.type):
        network = cast("CausalNetwork", lm.copy().model.to(device=device, dtype=dtype))
    backend = network.attention_backend
    with lm.lock, torch.no_grad(), use_choices(ComputeChoices.from_record(choices)):
        network.attention_backend = choices["attention"]
        try:
            yield network
        finally:
            network.attention_backend = backend
