from . import (
    core as core,
    data as data,
    distributed as distributed,
    evaluation as evaluation,
    finetuning as finetuning,
    inference as inference,
    interpret as interpret,
    models as models,
    nn as nn,
    objectives as objectives,
    runs as runs,
    training as training,
    widgets as widgets,
)
from .cached import cache as cache
from .core.report import Report as Report
from .core.survey import survey as survey
from .distributed import Launch as Launch, Plan as Plan, suggest_plan as suggest_plan
from .evaluation import evaluate as evaluate, reproduce as reproduce
from .finetuning import finetune as finetune
from .inference import SamplingConfig as SamplingConfig
from .lm import LM as LM
from .models import ModelConfig as ModelConfig
from .models.peft.bitfit import BitFit as BitFit
from .models.peft.bottleneck import Houlsby as Houlsby, Pfeiffer as Pfeiffer
from .models.peft.ia3 import IA3 as IA3
from .models.peft.lora import LoRA as LoRA
from .models.peft.p_tuning import PTuning as PTuning
from .models.peft.prefix_tuning import PrefixTuning as PrefixTuning, PTuningV2 as PTuningV2
from .models.peft.prompt_tuning import PromptTuning as PromptTuning
from .models.peft.qlora import QLoRA as QLoRA
from .models.preset_list import presets as presets
from .nn.compute.doctor import doctor as doctor
from .opening import load as load
from .runs import rules as rules
from .runs.compare import compare as compare
from .runs.run import Run as Run
from .training import (
    RunCallback as RunCallback,
    TrainConfig as TrainConfig,
    attach as attach,
    follow as follow,
    replay as replay,
    train as train,
    verify as verify,
)
from .widgets.attention import attention as attention
from .widgets.chat import chat as chat
from .widgets.show import panel as panel

__version__: str
