"""nbllm: the notebook-native toolkit for the whole life of a language model.

`import nbllm as nb`, then `nb.<TAB>`: the names are listed once, in `__init__.pyi`, and loaded when first used.
"""

import sys

import lazy_loader as lazy

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)


def _in_notebook() -> None:
    """Show runs as live panels, where this is a notebook's kernel; loads no widget library yet."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    if kernel is not None and kernel.ZMQInteractiveShell.initialized():
        from nbllm.widgets import show

        show.install(kernel.ZMQInteractiveShell.instance())


_in_notebook()
