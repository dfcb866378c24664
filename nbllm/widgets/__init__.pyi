from .base import Panel as Panel
from .runs import RunsPanel as RunsPanel
from .show import panel as panel
from .training import TrainingPanel as TrainingPanel
