"""Tasks, one file each: what a model is given, and what is made of its answers."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
