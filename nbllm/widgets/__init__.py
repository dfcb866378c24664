"""Panels for the notebook: the only package that imports ipywidgets, anywidget and IPython."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
