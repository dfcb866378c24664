from . import (
    blank_infilling as blank_infilling,
    causal_lm as causal_lm,
    denoising as denoising,
    fill_in_the_middle as fill_in_the_middle,
    masked_lm as masked_lm,
    mixture_of_denoisers as mixture_of_denoisers,
    prefix_lm as prefix_lm,
    span_corruption as span_corruption,
    supervised as supervised,
    whole_word_masked_lm as whole_word_masked_lm,
)
from .base import Batch as Batch, Objective as Objective
from .blank_infilling import BlankInfilling as BlankInfilling
from .catalogue import OBJECTIVES as OBJECTIVES
from .causal_lm import CausalLM as CausalLM
from .denoising import (
    Denoising as Denoising,
    DocumentRotation as DocumentRotation,
    SentencePermutation as SentencePermutation,
    TextInfilling as TextInfilling,
    TokenDeletion as TokenDeletion,
    TokenMasking as TokenMasking,
)
from .example import Example as Example
from .fill_in_the_middle import FillInTheMiddle as FillInTheMiddle
from .masked_lm import MaskedLM as MaskedLM
from .mixture_of_denoisers import MixtureOfDenoisers as MixtureOfDenoisers
from .prefix_lm import PrefixLM as PrefixLM
from .span_corruption import SpanCorruption as SpanCorruption
from .special_tokens import add_tokens as add_tokens
from .supervised import SupervisedFineTuning as SupervisedFineTuning
from .whole_word_masked_lm import WholeWordMaskedLM as WholeWordMaskedLM
