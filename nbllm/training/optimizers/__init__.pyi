from .catalogue import OPTIMIZERS as OPTIMIZERS
