"""`nb.evaluation.metric`: metrics of predictions as `evaluate.Metric`s, which need no network."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
from collections.abc import Mapping, Sequence, Sized
from typing import Any, NamedTuple

import evaluate
from datasets import Features, List, Value

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.quantities import counted
from nbllm.evaluation.columns import to_arrays, to_columns
from nbllm.evaluation.metrics.base import PredictionMetric, options_of
from nbllm.evaluation.metrics.catalogue import METRICS, MODULES
from nbllm.evaluation.metrics.inputs import LABEL


def metric(
    name: str,
    *,
    num_process: int = 1,
    process_id: int = 0,
    experiment_id: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> MetricModule:
    """Return a metric as an `evaluate.Metric`, with the arguments, keys and scale of the module of that name.

    Nothing is downloaded, and nothing is written unless several processes compute together.

    Args:
        name: "sacrebleu", "rouge", "squad", ...; `nb.evaluation.list_metrics()` lists them.
        num_process: How many processes add examples; process 0 computes over those of all.
        process_id: Which of them this is.
        experiment_id: A name that the processes share.
        cache_dir: A folder that the processes share; several need one.
        **settings: Defaults for `compute`, such as `tokenize="intl"`.

    Raises:
        UserError: There is no such metric or setting; the nearest is named.
    """
    if num_process > 1 and cache_dir is None:
        raise UserError(
            f"{num_process} processes compute over the examples of all by way of files.",
            where="cache_dir",
            hint="Give all of them the same cache_dir, a folder that they share, and the same experiment_id.",
        )
    options = {
        "num_process": num_process,
        "process_id": process_id,
        "experiment_id": experiment_id,
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
    }
    return MetricModule(name, settings, keep_in_memory=num_process == 1, **options)


class _Configured(NamedTuple):
    metrics: list[PredictionMetric]
    of_rows: dict[str, Any]
    of_results: dict[str, Any]


class MetricModule(evaluate.Metric):
    """Metrics of one `evaluate` module. Made by `nb.evaluation.metric`.

    Args:
        name: The module.
        settings: Defaults for `compute`.
        **options: Of `evaluate.EvaluationModule`.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], **options: Any) -> None:
        self._kinds = _kinds(name)
        self._settings = dict(settings)
        self._signature: str | None = None
        self._configured({})
        super().__init__(**options)
        self._module_info.module_name = name

    @property
    def signature(self) -> str:
        """How the last figures were made: every convention, and the version of what computed them."""
        return self._signature or self._configured({}).metrics[0].signature()

    def compute(self, *, predictions: Any = None, references: Any = None, **settings: Any) -> Any:
        """Compute the metric over these examples and all that were added.

        Args:
            predictions: One for each example.
            references: The same number.
            **settings: Arguments of the metric.

        Returns:
            The figures by name; `None` in processes other than the first.

        Raises:
            DataError: There are no examples, or the inputs differ in number or type; the index is named.
            UserError: A setting is unknown or out of range.
        """
        inputs = {"predictions": predictions, "references": references}
        inputs |= {name: settings.pop(name) for name in self._inputs if name in settings}
        self._configured(settings)
        given = {name: value for name, value in inputs.items() if value is not None}
        if given:
            self.add_batch(**given)
        if not len(self):
            raise DataError(
                f"There are no examples to compute {self.name} of.",
                hint=f"Give {' and '.join(self._inputs)}, or add them before with add_batch.",
            )
        return super().compute(**settings)

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Add one example."""
        given = {"predictions": prediction, "references": reference, **inputs}
        self.add_batch(**{name: [value] for name, value in given.items() if name in self._inputs or value})

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """Add examples.

        Args:
            predictions: One for each example.
            references: The same number.
            **inputs: Further inputs, where the metric has any.

        Raises:
            DataError: The inputs differ in number or type; the index is named.
        """
        given = {"predictions": predictions, "references": references, **inputs}
        batch = self._read({name: value for name, value in given.items() if value is not None})
        if len(next(iter(batch.values()))):
            super().add_batch(**batch)

    def _read(self, given: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the inputs checked and converted."""
        for name in given:
            if name not in self._inputs:
                raise UserError(f"{self.name} has no input {name!r}.", hint=nearest(name, self._inputs))
        for name, wanted in self._inputs.items():
            if name not in given:
                raise DataError(
                    f"The {name} are missing.", where=self.name, hint=f"Each of them is {wanted.words}."
                )
            if isinstance(given[name], (str, bytes, Mapping)) or not isinstance(given[name], Sized):
                raise DataError(
                    f"The {name} are of type {type(given[name]).__name__}, not a list with one for each example.",
                    hint=f"Give a list: {name}=[...].",
                )
        sizes = {name: len(given[name]) for name in self._inputs}
        if len(set(sizes.values())) > 1:
            counts = " but ".join(counted(size, name) for name, size in sizes.items())
            raise DataError(
                f"There are {counts}.",
                where=self.name,
                hint="Every example has one of each; several references of one example are a list in its place.",
            )
        batch = {name: wanted.read_all(name, given[name]) for name, wanted in self._inputs.items()}
        self._check_same_type(batch)
        return batch

    def _check_same_type(self, batch: Mapping[str, Sequence[Any]]) -> None:
        """Check that labels are all numbers or all texts."""
        labels = {name: values for name, values in batch.items() if self._inputs[name] is LABEL}
        first = next((type(value) for values in labels.values() for value in values), None)
        for name, values in labels.items():
            for index, value in enumerate(values):
                if first is not None and type(value) is not first:
                    raise DataError(
                        f"{name}[{index}] is {value!r}, but an earlier label is of type {first.__name__}.",
                        where=self.name,
                        hint="Labels are all whole numbers or all texts.",
                    )

    @property
    def _inputs(self) -> Mapping[str, Any]:
        return self._kinds[0].inputs

    def _configured(self, settings: Mapping[str, Any]) -> _Configured:
        """Return the metrics with these settings, and the arguments that are not settings of a figure."""
        chosen = {**self._settings, **settings}
        lead = self._kinds[0]
        named = [options_of(lead.rows), options_of(lead.results)]
        known = {field.name for field in dataclasses.fields(lead)}.union(*named)
        for name in chosen:
            if name not in known:
                names = known.union(self._inputs)
                raise UserError(f"{lead.module} has no argument {name!r}.", hint=nearest(name, names))
        of_rows, of_results = ({name: chosen.pop(name) for name in each & chosen.keys()} for each in named)
        return _Configured([kind.from_dict(chosen) for kind in self._kinds], of_rows, of_results)

    def _compute(self, *, predictions: Any = None, references: Any = None, **settings: Any) -> dict[str, Any]:
        metrics, of_rows, of_results = self._configured(settings)
        given = {"predictions": predictions, "references": references}
        columns = to_arrays(to_columns(metrics[0].rows(*(given[name] for name in self._inputs), **of_rows)))
        out: dict[str, Any] = {}
        for each in metrics:
            out.update(each.results(columns, **of_results))
        self._signature = metrics[0].signature(columns)
        return out

    def _info(self) -> evaluate.MetricInfo:
        kind = self._kinds[0]
        inputs = "".join(f"\n{name}: each is {each.words}." for name, each in kind.inputs.items())
        kinds = itertools.product(*(each.features for each in kind.inputs.values()))
        features = [
            Features({name: _feature(each) for name, each in zip(kind.inputs, combination, strict=True)})
            for combination in kinds
        ]
        return evaluate.MetricInfo(
            description=inspect.getdoc(kind) or "",
            citation=kind.source,
            inputs_description=inputs,
            features=features if len(features) > 1 else features[0],
        )

    def _build_data_dir(self) -> str:
        """Return the folder of the files of several processes; one process keeps its examples in memory."""
        return self._data_dir_root if self.num_process == 1 else str(super()._build_data_dir())

    def __repr__(self) -> str:
        what = "; ".join(
            f"{kind.label}, {kind.scale[0]:g} to {kind.scale[1]:g}, {kind.better} is better"
            for kind in self._kinds
        )
        return f"metric({self.name!r}): {what}; {len(self):,} examples added; {self.signature}"


def _kinds(name: str) -> tuple[type[PredictionMetric], ...]:
    """Return the metrics of a module.

    Raises:
        UserError: There is no such module; the nearest is named, or the one that returns the figure of that name.
    """
    if name not in MODULES and name in METRICS:
        figure = METRICS[name]
        if issubclass(figure, PredictionMetric):
            raise UserError(f"{name!r} is a figure of a metric.", hint=f"{figure.module!r} returns it.")
        raise UserError(
            f"{name!r} is computed of a task's rows.", hint="Give nb.evaluate a task that has it."
        )
    return MODULES[name]


def _feature(description: Any) -> Any:
    """Return the type of `datasets` that is described by names of value types, lists and dictionaries."""
    if isinstance(description, str):
        return Value(description)
    if isinstance(description, Sequence):
        return List(_feature(description[0]))
    return {name: _feature(each) for name, each in description.items()}
