from .choice import choose as choose
from .dispatch import attend as attend
from .dispatch import use_backend as use_backend
from .registry import BACKENDS as BACKENDS
from .registry import Backend as Backend
