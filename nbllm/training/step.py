"""One optimizer step: forward and backward passes, clipping, the update."""

from __future__ import annotations

import dataclasses
import math
import time

import torch
from torch import Tensor

from nbllm.data.loader import BatchSource
from nbllm.models.decoder import Decoder
from nbllm.objectives.causal_lm import causal_lm_loss
from nbllm.training.config import TrainConfig
from nbllm.training.optim import Optimizer
from nbllm.training.schedules import schedule_factor
from nbllm.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step came to.

    Args:
        state: The state after it.
        loss: Mean over its tokens, in nats.
        lr: The learning rate, the schedule applied.
        grad_norm: Norm of the gradient before clipping.
        tokens_per_second: Speed of this step.
        good: Whether loss and gradient were finite; if not, no weight was changed.
    """

    state: TrainState
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    good: bool


class Stepper:
    """Takes steps with a model, its optimizer and its data.

    The loss is a sum over tokens divided by their number in the whole step, so that accumulation changes nothing
    but memory.
    """

    def __init__(
        self, model: Decoder, optimizer: Optimizer, source: BatchSource, config: TrainConfig, device: str
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.source = source
        self.config = config
        self.device = device

    def step(self, state: TrainState) -> StepResult:
        """Take one step from `state`."""
        began = time.perf_counter()
        values, optimizer, position = state.values, self.optimizer, state.position
        tokens = values["accumulation"] * self.config.batch_size * self.config.sequence_length
        loss = 0.0
        for _ in range(values["accumulation"]):
            part = causal_lm_loss(self.model, *self.batch(position)) / tokens
            part.backward()
            optimizer.gather_gradients()
            loss += float(part.detach())
            position += self.config.batch_size
        norm = optimizer.clip(values["clip"])
        lr = values["lr"] * schedule_factor(self.config.schedule, state.step, self._shape(values["steps"]))
        good = math.isfinite(loss) and math.isfinite(norm)
        if good:
            optimizer.apply(lr=lr, **{name: values[name] for name in ("beta1", "beta2", "weight_decay")})
            optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - began
        after = state.replace(
            step=state.step + 1,
            position=position,
            tokens=state.tokens + tokens,
            seconds=state.seconds + seconds,
            bad_steps=0 if good else state.bad_steps + 1,
        )
        return StepResult(
            state=after, loss=loss, lr=lr, grad_norm=norm, tokens_per_second=tokens / seconds, good=good
        )

    def batch(self, position: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets drawn at `position`, each (batch, position), on the device."""
        inputs, targets = self.source.batch(position)
        return torch.from_numpy(inputs).to(self.device), torch.from_numpy(targets).to(self.device)

    def _shape(self, steps: int) -> TrainConfig:
        """The configuration as the schedule sees it: `steps` may have been changed since."""
        return self.config if steps == self.config.steps else self.config.replace(steps=steps)
