from . import rules as rules
from .actions import Action as Action
from .checkpoint import CheckpointInfo as CheckpointInfo
from .commands import Command as Command, CommandInbox as CommandInbox, send as send
from .events import EventReader as EventReader, EventWriter as EventWriter
from .listing import RunList as RunList, list_runs as list_runs
from .locating import locate as locate
from .lock import TrainerLock as TrainerLock
from .run import Outcome as Outcome, Run as Run, Starter as Starter
from .settings import Setting as Setting
from .store import create as create
from .summary import RunSummary as RunSummary
from .timeline import Timeline as Timeline
