from .activation_checkpointing import (
    checkpoint_activations as checkpoint_activations,
    held_bytes as held_bytes,
)
from .apply import lay_out as lay_out
from .bubble import bubble_share as bubble_share, zero_bubble_share as zero_bubble_share
from .explain import PlanReport as PlanReport
from .launch import Launch as Launch
from .layout import Layout as Layout, OneProcess as OneProcess
from .pipeline_timings import (
    PipelineTimings as PipelineTimings,
    pipeline_timeline as pipeline_timeline,
)
from .plan import Plan as Plan
from .process_group import ProcessGroup as ProcessGroup
from .ranks import OneRank as OneRank, Ranks as Ranks
from .step_time import Hardware as Hardware
from .suggest import Suggestion as Suggestion, suggest_plan as suggest_plan
