from .base import Family as Family
from .base import WeightRule as WeightRule
from .known import FAMILIES as FAMILIES
