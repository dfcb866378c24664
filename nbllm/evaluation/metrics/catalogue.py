"""All metrics by name: every module of this package registers its own when it is imported."""

from nbllm.core.registry import import_modules
from nbllm.evaluation.metrics.base import METRICS as METRICS

import_modules("nbllm.evaluation.metrics")
