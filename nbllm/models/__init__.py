"""Model architectures (survey 3.2): one block, configured; families map it to Hugging Face layouts."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
