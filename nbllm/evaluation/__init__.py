"""Evaluation (survey 3.6): tasks and metrics, the uncertainty of what they find, and the report of it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
