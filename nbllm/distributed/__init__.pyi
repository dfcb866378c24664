from .activation_checkpointing import (
    checkpoint_activations as checkpoint_activations,
    held_bytes as held_bytes,
)
from .apply import lay_out as lay_out
from .launch import Launch as Launch
from .layout import Layout as Layout, OneProcess as OneProcess
from .plan import Plan as Plan
from .process_group import ProcessGroup as ProcessGroup
from .ranks import OneRank as OneRank, Ranks as Ranks
