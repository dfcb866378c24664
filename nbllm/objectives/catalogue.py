"""All objectives by name: every module of this package registers its own when it is imported."""

from nbllm.core.registry import import_modules
from nbllm.objectives.base import OBJECTIVES as OBJECTIVES

import_modules("nbllm.objectives")
