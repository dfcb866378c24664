from .alignment.best_of_n import best_of_n as best_of_n
from .alignment.reward_report import reward_report as reward_report
from .alignment.rewards import REWARDS as REWARDS, register_reward as register_reward
from .alignment.rollouts import read_rollout as read_rollout
from .examples import Example as Example
from .forgetting import Forgetting as Forgetting, forgetting as forgetting
from .instruction_sets import INSTRUCTION_SETS as INSTRUCTION_SETS
from .layouts import LAYOUTS as LAYOUTS, read_example as read_example, read_examples as read_examples
from .method import METHODS as METHODS, Method as Method
from .mixtures import Mixture as Mixture
from .preparing import Prepared as Prepared, prepare as prepare
from .showing import show as show
from .start import finetune as finetune
from .tokens import TRAIN_ON as TRAIN_ON
