"""Fine-tuning (survey section 3.5): what examples look like, which of their tokens are trained, and runs on them."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
