"""All optimizers by name: every module of this package registers its own when it is imported."""

from nbllm.core.registry import import_modules
from nbllm.training.optimizers.base import OPTIMIZERS as OPTIMIZERS

import_modules("nbllm.training.optimizers")
