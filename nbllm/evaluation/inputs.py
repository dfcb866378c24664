"""What an evaluation measured, kept beside its report while the session lasts."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbllm.evaluation.remote import Remote
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What was measured in this session, by the name of the model; models are not kept alive."""

    models: Mapping[str, weakref.ref[LM | Remote]]
    tasks: Sequence[Task]
    data: Any
