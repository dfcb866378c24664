"""All metrics by name: every module of this package registers its own when it is imported."""

from __future__ import annotations

from nbllm.core.registry import Registry, import_modules
from nbllm.evaluation.metrics.base import METRICS as METRICS, PredictionMetric

import_modules("nbllm.evaluation.metrics")


def _modules() -> Registry[tuple[type[PredictionMetric], ...]]:
    """Return the metrics of predictions by the `evaluate` module that returns them."""
    found: dict[str, list[type[PredictionMetric]]] = {}
    for name in METRICS:
        kind = METRICS[name]
        if issubclass(kind, PredictionMetric):
            found.setdefault(kind.module, []).append(kind)
    out: Registry[tuple[type[PredictionMetric], ...]] = Registry("metric of predictions")
    for name, kinds in found.items():
        out.register(name)(tuple(kinds))
    return out


MODULES = _modules()
