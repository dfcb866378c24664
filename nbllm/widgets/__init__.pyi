from .base import Panel as Panel
from .chat import ChatPanel as ChatPanel
from .data import DataPanel as DataPanel
from .report import ExamplesPanel as ExamplesPanel
from .runs import RunsPanel as RunsPanel
from .show import panel as panel
from .training import TrainingPanel as TrainingPanel
