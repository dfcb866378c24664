from .callback import RunCallback as RunCallback
from .config import TrainConfig as TrainConfig
from .external_loop import FollowConfig as FollowConfig, Loop as Loop, follow as follow
from .replay import Replay as Replay, replay as replay
from .schedules import schedules as schedules
from .start import attach as attach, train as train
from .trainer import Trainer as Trainer
from .verification import Verification as Verification, verify as verify
