"""Training: the one loop, steered through the run directory (survey section 3.4)."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
