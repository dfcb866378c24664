"""Ways to compute attention behind one function, `attend`: one file a backend, chosen by measurement."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
