"""Data: from any source to batches of tokens (survey section 3.1)."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
