from .base import Task as Task, TaskResult as TaskResult
from .catalogue import TASKS as TASKS
