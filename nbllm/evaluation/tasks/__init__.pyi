from .base import Task as Task
from .base import TaskResult as TaskResult
from .catalogue import TASKS as TASKS
