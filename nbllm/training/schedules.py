"""Learning-rate schedules: the factor that multiplies the peak learning rate at each step.

A schedule is a pure function of the step, so that a resumed or replayed run needs no schedule state.
"""

from __future__ import annotations

import math
from typing import Protocol

from nbllm.core.registry import Registry


class ScheduleConfig(Protocol):
    """What a schedule reads of a run's configuration."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""

    @property
    def min_lr_ratio(self) -> float:
        """The factor at the end."""

    @property
    def decay_fraction(self) -> float:
        """The share of the steps in which "wsd" decays."""


class Schedule(Protocol):
    """A function from a step (0 is the first) to a factor between 0 and 1."""

    def __call__(self, step: int, config: ScheduleConfig) -> float:
        """Return the factor after warm-up; `schedule_factor` applies the warm-up."""


schedules: Registry[Schedule] = Registry("schedule")


def schedule_factor(name: str, step: int, config: ScheduleConfig) -> float:
    """Return the factor of schedule `name` at `step`; the first `config.warmup` steps rise linearly to 1."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return schedules[name](step, config)


@schedules.register("cosine")
def cosine(step: int, config: ScheduleConfig) -> float:
    """Half a cosine from 1 down to `min_lr_ratio`. Source: Loshchilov and Hutter 2016, arXiv:1608.03983, eq. 5."""
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (
        1 + math.cos(math.pi * _progress(step, config))
    )


@schedules.register("linear")
def linear(step: int, config: ScheduleConfig) -> float:
    """A straight line from 1 down to `min_lr_ratio`."""
    return 1 - (1 - config.min_lr_ratio) * _progress(step, config)


@schedules.register("wsd")
def warmup_stable_decay(step: int, config: ScheduleConfig) -> float:
    """Constant, then 1 minus the square root of the progress through the decay.

    Source: Hu et al. 2024, arXiv:2404.06395, section 4; the square-root form: Hagele et al. 2024, arXiv:2405.18392.
    """
    decay_steps = max(1, round(config.steps * config.decay_fraction))
    progress = (step - (config.steps - decay_steps)) / decay_steps
    if progress <= 0:
        return 1.0
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 - math.sqrt(min(1.0, progress)))


@schedules.register("constant")
def constant(step: int, config: ScheduleConfig) -> float:
    """The peak learning rate throughout."""
    return 1.0


def _progress(step: int, config: ScheduleConfig) -> float:
    """Return the share of the steps after warm-up that are taken, from 0 to 1."""
    return min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
