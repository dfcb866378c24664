"""Hugging Face families: one file each maps configuration and weight names, both ways."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
