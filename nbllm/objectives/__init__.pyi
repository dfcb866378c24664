from .base import Batch as Batch, Objective as Objective
from .catalogue import OBJECTIVES as OBJECTIVES
from .causal_lm import CausalLM as CausalLM
