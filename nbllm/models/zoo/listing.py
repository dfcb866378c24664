"""The published models as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from nbllm.core.quantities import size
from nbllm.core.text_table import text_table
from nbllm.models.zoo.known import MODELS, PublishedModel

HEADER = ("name", "family", "parameters", "licence", "what it does", "download", "here")


class ModelList(Sequence[PublishedModel]):
    """Published models, shown in a cell as a table; `nbllm.load(name)` opens one.

    Args:
        models: The models.
    """

    def __init__(self, models: Sequence[PublishedModel]) -> None:
        self._models = tuple(models)

    @overload
    def __getitem__(self, key: int) -> PublishedModel: ...
    @overload
    def __getitem__(self, key: slice) -> ModelList: ...
    def __getitem__(self, key: int | slice) -> PublishedModel | ModelList:
        return ModelList(self._models[key]) if isinstance(key, slice) else self._models[key]

    def __len__(self) -> int:
        return len(self._models)

    def __iter__(self) -> Iterator[PublishedModel]:
        return iter(self._models)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows as text: name, family, parameters, licence, purpose, download, here."""
        return [_row(model) for model in self._models]

    def __repr__(self) -> str:
        return text_table([HEADER, *self.rows()])

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment, table

        return fragment(table(self.rows(), HEADER))


def list_models() -> ModelList:
    """Return the published models that nbllm knows by name."""
    return ModelList(tuple(MODELS.values()))


def _row(model: PublishedModel) -> tuple[str, ...]:
    return (
        model.name,
        model.family,
        f"{model.num_parameters / 1e6:,.0f} M",
        model.licence,
        model.purpose,
        " or ".join(f"{size(source.num_bytes)} ({source.weights})" for source in model.sources),
        next((f"yes ({source.weights})" for source in model.sources if source.find()), "no"),
    )
