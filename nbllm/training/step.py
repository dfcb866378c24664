"""One optimizer step: forward and backward passes, clipping, the update."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.profiler import record_function

from nbllm.core.errors import UserError
from nbllm.core.seeding import derive
from nbllm.data.loader import WindowSource
from nbllm.data.sample_store import RowSource
from nbllm.distributed.loss_module import LossOutput
from nbllm.models.network import Network
from nbllm.nn.mixture_of_experts import record_routing
from nbllm.objectives import Batch, Objective
from nbllm.objectives.measures import means_of, recorded_measures, reported_by
from nbllm.training.config import TrainConfig
from nbllm.training.loss_scaling import next_scale
from nbllm.training.optim import Optimizer
from nbllm.training.rank_report import NO_REPORT, RankReport
from nbllm.training.schedules import schedule_factor
from nbllm.training.step_profiler import DATA, OPTIMIZER
from nbllm.training.train_state import TrainState

if TYPE_CHECKING:
    from nbllm.lm import LM


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step came to.

    Args:
        state: The state after it.
        loss: Mean over all that counts in it, in nats; NaN where nothing does.
        lr: The learning rate, the schedule applied.
        grad_norm: Norm of the gradient before clipping.
        tokens_per_second: Speed of this step.
        good: Whether loss and gradient were finite; if not, no weight was changed.
        measured: The mean of each metric that the objective declares and has measured.
    """

    state: TrainState
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    good: bool
    measured: dict[str, float]


class Padding(dict[str, torch.Tensor]):
    """A batch that counts for nothing: a rank that has no more takes part with it in what the others compute."""


class Stepper:
    """Takes steps with a network, its objective, its optimizer and its data.

    The gradient is that of the loss summed over all batches of the step and all ranks, divided by how much counts in
    all of them; so accumulation changes nothing but memory.

    Attributes:
        folder: The run's directory, for what is kept there beside events and checkpoints; None: there is none.
        lm: The model that the network is part of, for its adapters; None: there are none.
        report: What this rank tells of itself.
    """

    folder: Path | None = None
    lm: LM | None = None
    report: RankReport = NO_REPORT

    def __init__(
        self,
        objective: Objective[Any],
        optimizer: Optimizer,
        source: WindowSource | RowSource,
        config: TrainConfig,
        device: str,
    ) -> None:
        self.layout = optimizer.layout
        self.objective = objective
        self.optimizer = optimizer
        self.source = source
        self.config = config
        self.device = device

    @property
    def network(self) -> nn.Module:
        """This rank's part of the network."""
        return self.layout.network

    def step(self, state: TrainState) -> StepResult:
        """Take one step from `state`."""
        began = time.perf_counter()
        values, optimizer = state.values, self.optimizer
        self.configure(values)
        # The count of all batches is known only when the last one is made, so until then the losses are divided by
        # the count of an objective that counts every token. Where that was right there is nothing left to do.
        is_scaled = self.layout.dtype == torch.float16
        scale = state.loss_scale if is_scaled else 1.0
        sequences = self._sequences(state)
        expected = sequences * self.config.sequence_length
        with record_function(DATA):
            batches = self._batches(state.position, sequences)
        with recorded_measures() as measures:
            sums = torch.tensor(
                self.layout.forward_backward(batches, self._loss, expected / scale), dtype=torch.float64
            )
        measured = measures.to_tensor(names := reported_by(self.objective))
        self.layout.sum([sums, measured])
        total, count = sums.tolist()
        if (factor := (expected / count if count else 1.0) / scale) != 1:
            optimizer.scale_gradients(factor)
        mean = total / count if count else math.nan
        with record_function(OPTIMIZER):
            norm = optimizer.clip(values["clip"])
        lr = values["lr"] * schedule_factor(self.config.schedule, state.step, self._shape(values["steps"]))
        self.report.see(optimizer, state.step)
        good = math.isfinite(mean) and math.isfinite(norm)
        if good:
            optimizer.configure(lr=lr, **{name: values[name] for name in self.config.optimizer_settings})
            with record_function(OPTIMIZER):
                optimizer.step()
        optimizer.zero_grad()
        # Above 1, gradients that are not finite are the scale's fault: that of the next step is smaller.
        overflowed = scale > 1 and math.isfinite(mean) and not math.isfinite(norm)
        if is_scaled:
            scale, steps = next_scale(scale, state.scaled_steps, overflowed=overflowed)
            state = state.replace(loss_scale=scale, scaled_steps=steps)
        seconds = time.perf_counter() - began
        tokens = sequences * self.source.stride
        after = state.replace(
            step=state.step + 1,
            position=state.position + sequences,
            tokens=state.tokens + tokens,
            seconds=state.seconds + seconds,
            bad_steps=0 if good or overflowed else state.bad_steps + 1,
        )
        return StepResult(
            state=after, loss=mean, lr=lr, grad_norm=norm, tokens_per_second=tokens / seconds, good=good,
            measured=means_of(measured, names),
        )  # fmt: skip

    def _batches(self, begin: int, sequences: int) -> list[Batch]:
        """Return this data rank's share of a step: as many batches as every other has, in turn.

        The step's sequences are the same on however many ranks. Where there are more ranks than batches, these are
        divided; where the batches do not go round, the last ones of some ranks are `Padding`.

        Args:
            begin: Where the step's first sequence is drawn.
            sequences: How many there are.
        """
        rank, size = self.layout.data_rank, self.layout.data_size
        largest = min(self.config.batch_size, -(-sequences // size))
        starts = range(begin, begin + sequences, largest)
        own = [self.batch(start, min(largest, begin + sequences - start)) for start in starts[rank::size]]
        if len(starts) % size and max(self.layout.plan.pipeline, self.layout.plan.context) > 1:
            raise UserError(
                f"{size} data ranks cannot share {len(starts)} batches of a step evenly, as this plan asks.",
                hint="Go on with another number of data ranks, or set accumulation.",
            )
        if len(own) < -(-len(starts) // size):
            own.append(Padding(self.batch(begin, largest)))
        return own

    def configure(self, values: Mapping[str, Any]) -> None:
        """Give the objective its settings as they are now."""
        own = self.config.objective_settings
        if own:
            self.objective.configure({**own, **{name: values[name] for name in own if name in values}})

    def _loss(self, network: nn.Module, batch: Batch) -> LossOutput:
        """Return the loss of a batch; see `LossOutput`."""
        if isinstance(batch, Padding):
            with recorded_measures():  # which nobody reads
                loss, _, _ = self._loss(network, {**batch})
            return loss * 0.0, 0.0, None
        if not isinstance(network, Network) or not network.config.router_loss_weight:
            return *self.objective.loss(network, batch), None
        with record_routing() as routing:
            loss, counted = self.objective.loss(network, batch)
        return loss, counted, network.auxiliary_loss(routing)

    def positions_before(self, state: TrainState) -> range:
        """Return where the batches of the step that led to `state` were drawn, those of all ranks."""
        return range(state.position - self._sequences(state), state.position, self.config.batch_size)

    def batch(self, position: int, size: int | None = None) -> Batch:
        """Return the batch drawn at `position`, on the device, of `size` sequences or the run's batch size.

        Its windows and its randomness depend on the seed and the position alone, so that a run that resumes or is
        replayed makes the same batches again, and no two batches share their randomness.
        """
        windows = self.source.draw(position, size or self.config.batch_size)
        rng = np.random.default_rng(derive(self.config.seed, "objective", position))
        return on_device(self.objective.batch(windows, rng), self.device)

    def _sequences(self, state: TrainState) -> int:
        """Return how many sequences make one step, on all ranks together."""
        return int(state.values["accumulation"]) * self.config.batch_size * state.data_size

    def _shape(self, steps: int) -> TrainConfig:
        """The configuration as the schedule sees it: `steps` may have been changed since."""
        return self.config if steps == self.config.steps else self.config.replace(steps=steps)


def on_device(batch: Batch, device: str) -> Batch:
    """Return the batch with its tensors on `device`."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
