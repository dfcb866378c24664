"""Objectives (survey section 3.3): what a network is asked to predict, and the loss of it; one file each."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
