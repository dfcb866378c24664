from .base import (
    FunctionOfSums as FunctionOfSums,
    MacroAverage as MacroAverage,
    Metric as Metric,
    RatioOfSums as RatioOfSums,
)
from .catalogue import METRICS as METRICS
from .compression import xz_bits_per_byte as xz_bits_per_byte
