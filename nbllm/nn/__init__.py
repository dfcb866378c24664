"""The transformer's parts (survey 2.1): attention, positions, masks, feed-forward, normalization."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
