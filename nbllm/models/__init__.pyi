from .block import Block as Block
from .config import ModelConfig as ModelConfig
from .costs import Costs as Costs
from .decoder import Decoder as Decoder
from .embedding import embed_tokens as embed_tokens
from .encoder import Encoder as Encoder
from .encoder_decoder import EncoderDecoder as EncoderDecoder
from .families import FAMILIES as FAMILIES
from .loading import load_model as load_model, save_model as save_model
from .network import NETWORKS as NETWORKS, Network as Network, build as build
from .prefix_decoder import PrefixDecoder as PrefixDecoder
from .presets import PRESETS as PRESETS, make_config as make_config
from .scoring import token_log_probabilities as token_log_probabilities
from .zoo.fetching import fetch as fetch
from .zoo.known import PublishedModel as PublishedModel
from .zoo.listing import ModelList as ModelList
