"""nbllm: the notebook-native toolkit for the whole life of a language model.

`import nbllm as nb`, then `nb.<TAB>`: the names are listed once, in `__init__.pyi`, and loaded when first used.
"""

import lazy_loader as lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
