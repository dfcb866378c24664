"""Mixtures: several texts trained together, each with its share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError, listed, nearest
from nbllm.core.quantities import number, size
from nbllm.core.seeding import derive

if TYPE_CHECKING:
    from datasets import Dataset

NAME = "mixture"  # the column that says from which text a document is
ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Share:
    """What a text gives to a mixture.

    Attributes:
        share: Its part of the mixture's bytes.
        bytes: The bytes it has.
        epochs: How often it is used: 0.5 is half of its documents, 2 each of them twice.
    """

    share: float
    bytes: int
    epochs: float


def mix(
    sources: Mapping[str, Any],
    *,
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    epochs: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Mix texts in given shares of their bytes; every stretch of the result has about the same shares.

    Args:
        sources: Texts by name, each anything that `nbllm.data.load` takes.
        weights: What share each gets, in proportion to the others; if not given, what it has of the bytes, to the power
            1 / `temperature`.
        temperature: 1 is in proportion to the sizes, larger is nearer to equal shares. Without `weights` only.
        epochs: The mixture ends when a text would be used more often than this. A repeated text comes in another order.
        seed: Names the order. The same texts, settings and seed make the same mixture.

    Returns:
        A data set with the columns `text`, `mixture` (the name) and `source`, where all have one.

    Raises:
        DataError: A text cannot be read or is empty.
        UserError: A weight is missing, surplus or not above 0, or a setting makes no sense.

    Source: Xue et al. 2021, arXiv:2010.11934, section 3.2 (sampling by temperature); Muennighoff et al. 2023,
    arXiv:2305.16264 (up to four epochs of repeated text are nearly as good as new text).
    """
    from datasets import concatenate_datasets

    from nbllm.data.texts import as_dataset

    _check(sources, weights, temperature, epochs)
    texts = {name: as_dataset(source) for name, source in sources.items()}
    sizes = {name: document_bytes(text) for name, text in texts.items()}
    totals = {name: int(count.sum()) for name, count in sizes.items()}
    if empty := [name for name, count in totals.items() if count == 0]:
        raise DataError(f"There is no text in {listed(empty)}.", hint="Leave it out.")
    shares = shares_of(totals, weights, temperature, epochs)
    begin = 0
    rows: list[NDArray[np.int64]] = []
    places: list[NDArray[np.float64]] = []
    parts = []
    has_source = all("source" in text.column_names for text in texts.values())
    for name, text in texts.items():
        order, place = _drawn(sizes[name], shares[name].epochs, derive(seed, "mixture", name))
        rows.append(order + begin)
        places.append(place)
        part = text.select_columns(["text", *(["source"] if has_source else [])])
        parts.append(part.add_column(NAME, [name] * len(part)))
        begin += len(part)
    order = np.argsort(np.concatenate(places), kind="stable")
    mixed: Dataset = concatenate_datasets(parts).select(np.concatenate(rows)[order])
    said = [
        f"{name} {number(100 * share.share, 3)}% ({number(share.epochs, 3)} epochs of {size(share.bytes)})"
        for name, share in shares.items()
    ]
    mixed.info.description = f"A mixture: {', '.join(said)}."
    return mixed


def shares_of(
    sizes: Mapping[str, int], weights: Mapping[str, float] | None, temperature: float, epochs: float
) -> dict[str, Share]:
    """Return what each text gives.

    Args:
        sizes: Bytes of each, more than 0.
        weights: As for `mix`.
        temperature: As for `mix`.
        epochs: As for `mix`.

    >>> {name: share.share for name, share in shares_of({"a": 100, "b": 10_000}, None, 2.0, 1.0).items()}
    {'a': 0.09090909090909091, 'b': 0.9090909090909091}
    """
    most = max(sizes.values())
    raw = weights or {name: (count / most) ** (1 / temperature) for name, count in sizes.items()}
    total = sum(raw[name] for name in sizes)
    shares = {name: raw[name] / total for name in sizes}
    num_bytes = min(epochs * sizes[name] / shares[name] for name in sizes)
    return {
        name: Share(shares[name], count, shares[name] * num_bytes / count) for name, count in sizes.items()
    }


def document_bytes(text: Dataset) -> NDArray[np.int64]:
    """Return the UTF-8 bytes of each document."""
    return np.concatenate([np.empty(0, np.int64), *_lengths(text)])


def _lengths(text: Dataset) -> Iterator[NDArray[np.int64]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for table in text.select_columns("text").with_format("arrow").iter(ROWS):
        column = table["text"].cast(pa.large_binary())
        yield pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)


def _drawn(
    sizes: NDArray[np.int64], epochs: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the documents that are used, in their order, and where in the mixture each begins, from 0 to 1.

    Args:
        sizes: (document,) bytes.
        epochs: How often all of them are used; of the last epoch those whose beginning lies within it.
        seed: Names the order.
    """
    orders: list[NDArray[np.int64]] = []
    begins: list[NDArray[np.float64]] = []
    total = max(int(sizes.sum()), 1)
    for epoch in range(math.ceil(epochs)):
        order = np.random.default_rng([seed, epoch]).permutation(len(sizes))
        ends = np.cumsum(sizes[order])
        begin = epoch + (ends - sizes[order]) / total
        used = begin < epochs
        orders.append(order[used])
        begins.append(begin[used] / epochs)
    return np.concatenate(orders), np.concatenate(begins)


def _check(
    sources: Mapping[str, Any], weights: Mapping[str, float] | None, temperature: float, epochs: float
) -> None:
    if not isinstance(sources, Mapping) or not sources:
        raise UserError("A mixture is made of texts by name.", hint='mix({"books": ..., "code": ...}).')
    for name, value in (("temperature", temperature), ("epochs", epochs)):
        if not 0 < value < math.inf:
            raise UserError(f"{name} must be a number above 0, not {value!r}.")
    if weights is None:
        return
    if temperature != 1:
        raise UserError("temperature has no meaning where there are weights.", hint="Leave out one of them.")
    for name, weight in weights.items():
        if name not in sources:
            raise UserError(f"There is no text {name!r} to weigh.", hint=nearest(str(name), list(sources)))
        if not 0 < weight < math.inf:
            raise UserError(f"The weight of {name!r} must be a number above 0, not {weight!r}.")
    if missing := [name for name in sources if name not in weights]:
        raise UserError(f"There is no weight of {listed(missing)}.", hint="Give each text one.")
