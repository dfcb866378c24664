"""How a run is laid over several processes: who they are, and how each holds its part."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
