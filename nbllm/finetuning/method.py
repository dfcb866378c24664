"""Methods of fine-tuning: what `nb.finetune(lm, data, method="...")` can do, one file each.

A method is a frozen dataclass that registers itself in `METHODS`, in a module of `nbllm.finetuning` or
`nbllm.finetuning.alignment`. Its fields are the arguments of `nb.finetune` that it alone takes, with their defaults; it
checks them in `__post_init__`, turns data into rows (`prepare`), and names the objective that a run trains for. All
else is the objective's (`nbllm.objectives.base`), which the one loop of `nbllm.training` serves:

| a method needs | where it says so |
|---|---|
| coefficients, such as beta, that can be changed while the run goes on | `Objective.settings`, given to `configure` |
| choices that are fixed and recorded, such as the kind of a normalization | `Objective.options`, given likewise |
| rows of another make than tokens and targets | the columns of a `data.sample_store.SampleStore` |
| figures beside the loss, such as rewards and accuracy | what `Objective.loss` measures |
| a reference whose texts are known beforehand | columns that `prepare` computes with the model as it is then |
| a reference for texts that are sampled later | `alignment.reference.Reference`, made in `Objective.begin_with` |
| other state that changes, such as an adaptive coefficient | `Objective.state_tensors`, `load_state_tensors` |
| batches that are rollouts of the current policy | `Objective.stepper` |
| modules that the model lacks, such as a reward or value head | `trained`, which returns the model that is trained |

A stepper is a `training.step.Stepper` whose `step` samples and then updates the weights as often as the algorithm does:
a step of the loop is an iteration of the algorithm, so that nothing but weights and the objective's state is kept
between two steps, and checkpoints, rewinding and replay are as for every other run.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from nbllm.core.config import PlainConfig
from nbllm.core.registry import Registry
from nbllm.training.config import TrainConfig

if TYPE_CHECKING:
    from nbllm.data.sample_store import SampleStore
    from nbllm.lm import LM


class Prepared(Protocol):
    """Data that is ready to be trained on; its `repr` says what there is, and what was cut or left out and why."""

    @property
    def store(self) -> SampleStore:
        """The rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(PlainConfig, ABC):
    """One method of fine-tuning; see the module.

    Attributes:
        objective: The name of what a run trains for, in `nbllm.objectives.OBJECTIVES`, unless `objective_for` says
            otherwise.
        learning_rates: Of an adapter, and of all parameters.
        batch_tokens: Of how many tokens a batch is, unless its size is given.
    """

    objective: ClassVar[str]
    learning_rates: ClassVar[tuple[float, float]] = (2e-4, 2e-5)
    batch_tokens: ClassVar[int] = 2048

    def objective_for(self, lm: LM) -> str:
        """Return the name of the objective for a model."""
        return self.objective

    @abstractmethod
    def prepare(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of data, before the adapter of the run is attached to the model.

        Args:
            data: What was given to `nb.finetune`.
            lm: The model, as it is before the run.
            config: The run's; `sequence_length` is the length of a row.

        Raises:
            DataError: Nothing is left to train on.
        """

    def options(self) -> dict[str, Any]:
        """Return settings of the run that follow from the method's own arguments, such as the name of a reward."""
        return {}

    def prepare_validation(self, data: Any, lm: LM, config: TrainConfig) -> Prepared:
        """Make rows of held-out data, which is like the other unless a method says so; as `prepare`."""
        return self.prepare(data, lm, config)

    def sample_prompts(self, store: SampleStore, lm: LM) -> tuple[str, ...]:
        """Return what the samples of a run continue, unless it is given.

        Args:
            store: The rows that it is measured on, or else those that it trains on.
            lm: The model.
        """
        return TrainConfig.sample_prompts

    def trained(self, lm: LM) -> LM:
        """Return the model that the run trains, which is `lm` unless it lacks a part.

        Raises:
            UserError: The model cannot learn so.
        """
        return lm


METHODS: Registry[type[Method]] = Registry("method", "nbllm.finetuning", "nbllm.finetuning.alignment")
