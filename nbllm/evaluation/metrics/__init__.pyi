from .base import Metric as Metric, RatioOfSums as RatioOfSums
from .catalogue import METRICS as METRICS
from .compression import xz_bits_per_byte as xz_bits_per_byte
