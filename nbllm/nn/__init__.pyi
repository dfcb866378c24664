from .activations import ACTIVATIONS as ACTIVATIONS
from .attention import Attention as Attention, AttentionContext as AttentionContext
from .attention_backends import attend as attend
from .cross_attention import CrossAttention as CrossAttention
from .cross_attention_cache import CrossAttentionCache as CrossAttentionCache
from .feed_forward import FeedForward as FeedForward
from .kv_cache import KVCache as KVCache
from .linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from .masks import (
    causal_mask as causal_mask,
    padded_causal_mask as padded_causal_mask,
    padding_mask as padding_mask,
    prefix_mask as prefix_mask,
    restarted_positions as restarted_positions,
    same_document_mask as same_document_mask,
)
from .normalization import make_norm as make_norm
from .positions import (
    POSITIONS as POSITIONS,
    ALiBiPositions as ALiBiPositions,
    LearnedPositions as LearnedPositions,
    Places as Places,
    Positions as Positions,
    RelativeBuckets as RelativeBuckets,
    RotaryPositions as RotaryPositions,
    SinusoidalPositions as SinusoidalPositions,
    rotate as rotate,
)
