from . import masked_lm as masked_lm, whole_word_masked_lm as whole_word_masked_lm
from .base import Batch as Batch, Objective as Objective
from .catalogue import OBJECTIVES as OBJECTIVES
from .causal_lm import CausalLM as CausalLM
from .example import Example as Example
from .masked_lm import MaskedLM as MaskedLM
from .whole_word_masked_lm import WholeWordMaskedLM as WholeWordMaskedLM
