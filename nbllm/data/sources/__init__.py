"""Where text comes from: embedded sources, files, folders, data sets, the hub."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
