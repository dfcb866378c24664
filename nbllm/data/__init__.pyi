from .canaries import (
    Canaries as Canaries,
    canary_exposure as canary_exposure,
    plant_canaries as plant_canaries,
)
from .decontamination import decontaminate as decontaminate
from .deduplication.methods import dedup as dedup
from .harm.associations import identity_associations as identity_associations
from .harm.audit import harm_audit as harm_audit
from .harm.toxicity import toxicity as toxicity
from .loader import WindowSource as WindowSource
from .mixture import mix as mix
from .packing import pack as pack
from .pii.names import PresidioNames as PresidioNames, TaggedNames as TaggedNames
from .pii.step import privacy as privacy
from .pipeline.pipeline import Pipeline as Pipeline
from .pipeline.prepared import Prepared as Prepared
from .pipeline.preparing import prepare as prepare
from .pipeline.step import STEPS as STEPS
from .quality.classifier import (
    Classified as Classified,
    QualityClassifier as QualityClassifier,
    train_classifier as train_classifier,
)
from .quality.importance import (
    ImportanceResampling as ImportanceResampling,
    ImportanceWeights as ImportanceWeights,
    importance_weights as importance_weights,
)
from .quality.language import Language as Language
from .quality.ngram_model import NgramModel as NgramModel, train_ngram_model as train_ngram_model
from .quality.perplexity import ModelPerplexity as ModelPerplexity, NgramPerplexity as NgramPerplexity
from .quality.presets import quality as quality
from .row_packing import pack_rows as pack_rows
from .sources import SOURCES as SOURCES, load as load
from .splitting import split as split
from .token_store import TokenStore as TokenStore
from .tokenizer import END_OF_TEXT as END_OF_TEXT, train_tokenizer as train_tokenizer
from .tokenizer_comparison import compare_tokenizers as compare_tokenizers
from .vocabulary import expand_vocabulary as expand_vocabulary
