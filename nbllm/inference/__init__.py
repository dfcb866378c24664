"""Inference: from a prompt to text, token by token (survey sections 4.2 and 4.4)."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
