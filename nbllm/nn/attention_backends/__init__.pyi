from .choice import choose as choose
from .dispatch import attend as attend, use_backend as use_backend
from .registry import BACKENDS as BACKENDS, Backend as Backend
