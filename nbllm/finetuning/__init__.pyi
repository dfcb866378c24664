from .examples import Example as Example, read_example as read_example
from .method import METHODS as METHODS, Method as Method
from .preparing import Prepared as Prepared, prepare as prepare
from .showing import show as show
from .start import finetune as finetune
from .tokens import TRAIN_ON as TRAIN_ON
