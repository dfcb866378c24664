"""All tasks by name: every module of this package registers its own when it is imported."""

from nbllm.core.registry import import_modules
from nbllm.evaluation.tasks.base import TASKS as TASKS

import_modules("nbllm.evaluation.tasks")
