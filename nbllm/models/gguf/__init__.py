"""GGUF: llama.cpp's one-file models, read and written."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
