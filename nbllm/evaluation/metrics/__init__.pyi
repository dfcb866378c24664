from .base import (
    FunctionOfSums as FunctionOfSums,
    MacroAverage as MacroAverage,
    MeanOfRows as MeanOfRows,
    Metric as Metric,
    PredictionMetric as PredictionMetric,
    RatioOfSums as RatioOfSums,
)
from .bertscore import bertscore_baseline as bertscore_baseline
from .catalogue import METRICS as METRICS, MODULES as MODULES
from .compression import xz_bits_per_byte as xz_bits_per_byte
