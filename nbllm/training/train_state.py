"""What a checkpoint holds beside the weights, and how both are written and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file

from nbllm.core.base_weights import FOLDER, BaseWeights
from nbllm.core.config import Config
from nbllm.core.io import atomic_directory
from nbllm.models.tensor_file import StoredTensors
from nbllm.models.tensor_shards import OBJECTIVE, is_sharded, shards_of
from nbllm.models.tensor_writing import write_tensors
from nbllm.runs.checkpoint import load_state
from nbllm.training.loss_scaling import INITIAL_SCALE
from nbllm.training.sharded_state import names_of_adapters, read_parts

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.models.network import Network
    from nbllm.objectives import Objective
    from nbllm.training.optim import Optimizer

OPTIMIZER_FILE, OBJECTIVE_FILE = "optimizer.safetensors", "objective.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState(Config):
    """The loop's own state at a step boundary; the data order needs `position` alone.

    Args:
        step: Optimizer steps taken on the current branch.
        position: Sequences drawn from the token store.
        tokens: Tokens trained on.
        seconds: Time spent in training steps.
        bad_steps: Steps in a row that were skipped, their loss or gradient not finite.
        loss_scale: By what the loss of the next step is multiplied in float16.
        scaled_steps: Steps in a row that did not overflow at this scale.
        values: The settings as they are now.
        frozen: Patterns of the frozen parameters.
        data_size: Data ranks that the run began on. With batch size and accumulation it says how many sequences make
            a step, on however many ranks the run goes on.
    """

    step: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    loss_scale: float = INITIAL_SCALE
    scaled_steps: int = 0
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    data_size: int = 1

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """Read the state that a checkpoint was saved with; the run's own entries are left out.

        Raises:
            RunError: It is damaged.
        """
        stored = load_state(checkpoint)
        return cls.from_dict({name: value for name, value in stored.items() if name != "num_actions"})

    def __post_init__(self) -> None:
        """JSON has lists only."""
        object.__setattr__(self, "frozen", tuple(self.frozen))


@torch.no_grad()
def write_model(folder: Path, lm: LM, optimizer: Optimizer, base: BaseWeights | None) -> None:
    """Write the float32 weights as a model directory (it opens in transformers), and the optimizer's state.

    Of a model whose own weights are those of `base`, the adapters and a reference are written instead.
    """
    layout = optimizer.layout
    with (
        layout.whole_network(in_float32=True),
        layout.allocating(),
    ):  # not as rounded as what it computes with
        write_lm(folder, lm, base)
    write_tensors(optimizer.state_tensors(), folder / OPTIMIZER_FILE)


def write_lm(folder: Path, lm: LM, base: BaseWeights | None) -> None:
    """Write a model's files; of one whose own weights are those of `base`, a reference to it instead of these."""
    lm.write_files(folder, weights=base is None)
    if base is not None:
        base.refer(folder)


def only_adapters_are_trained(lm: LM, frozen: Collection[str]) -> bool:
    """Return whether a model's own weights stay as they are where the parameters of these names are frozen."""
    adapters = names_of_adapters(lm)
    return bool(adapters) and all(
        name in adapters or name in frozen for name, _ in lm.model.named_parameters()
    )


def write_base(run: Path, lm: LM) -> BaseWeights:
    """Write a model's own weights into a run's folder, for all checkpoints that refer to them.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    from nbllm.models.loading import save_model

    with atomic_directory(run / FOLDER) as aside, lm.lock:
        save_model(lm.model, aside)
    return BaseWeights.of_run(run)


@torch.no_grad()
def read_model(folder: Path, lm: LM, optimizer: Optimizer) -> None:
    """Put back into `lm` and `optimizer` what `write_model` wrote, or several ranks in parts."""
    from nbllm.models.loading import read_parameters
    from nbllm.models.peft.checkpoint import read_tensors

    layout, shards = optimizer.layout, shards_of(folder)
    if not is_sharded(folder):
        # One at a time: there may be no memory for a second model.
        for name, stored in read_parameters(folder):
            layout.assign(name, stored)
    if shards is not None:
        read_parts(shards, optimizer, names_of_adapters(lm), own=is_sharded(folder))
    else:
        for name, update in read_tensors(folder).items():
            layout.assign(name, update)
        path = folder / OPTIMIZER_FILE
        if path.exists():
            with StoredTensors(path) as tensors:  # one at a time, as well
                optimizer.load_state_tensors(tensors)
        else:
            optimizer.load_state_tensors({})
    layout.publish()
    layout.drop_gradients()


def write_objective(folder: Path, objective: Objective[Any]) -> None:
    """Write the state of a run's objective, where it has any."""
    if tensors := objective.state_tensors():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_tensors(plain, folder / OBJECTIVE_FILE)


def read_objective(folder: Path, objective: Objective[Any], network: Network) -> None:
    """Put back what `write_objective` wrote; at the start of a run, let the objective begin.

    Args:
        folder: A checkpoint.
        objective: The run's.
        network: The run's, as the checkpoint has it.
    """
    path, shards = folder / OBJECTIVE_FILE, shards_of(folder)
    held = load_file(path) if path.exists() else {} if shards is None else shards.read_group(OBJECTIVE)
    if held:
        objective.load_state_tensors({name: t.to(network.device) for name, t in held.items()}, network)
    else:
        objective.begin_with(network)
