from .dispatch import attend as attend, use_backend as use_backend
from .measuring import choose as choose
from .registry import BACKENDS as BACKENDS, Backend as Backend
