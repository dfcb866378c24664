from .base import Task as Task
from .catalogue import TASKS as TASKS
