"""Optimizers, one file each: how the weights follow from the gradients, and which of its settings can be steered."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
