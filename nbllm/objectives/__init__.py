"""Pre-training objectives (survey section 3.3): what a model is asked to predict, and the loss of it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
