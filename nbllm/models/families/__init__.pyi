from .base import Family as Family, WeightRule as WeightRule
from .known import FAMILIES as FAMILIES
