"""What a training run is told before it starts."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import PlainConfig, check_choice, check_positive
from nbllm.core.errors import UserError
from nbllm.objectives import OBJECTIVES
from nbllm.runs.rulebook import check_rules
from nbllm.runs.rules import Rule
from nbllm.training.schedules import schedules

_HUGE = 1e12  # far beyond any use, and finite: JSON has no infinity


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(PlainConfig):
    """Configuration of a run. What may change while it runs is declared in `training.settings`.

    Args:
        objective: What the network is trained for: a name in `nbllm.objectives.OBJECTIVES`.
        steps: Optimizer steps in all.
        batch_size: Sequences in one forward pass.
        sequence_length: Tokens in one sequence.
        accumulation: Forward passes whose gradients make one step.
        lr: Peak learning rate; the schedule multiplies it.
        schedule: "cosine", "wsd" (warm-up, stable, decay) or "constant".
        warmup_steps: Steps of linear warm-up; `None` is a twentieth of `steps`.
        min_lr_ratio: The share of `lr` that the schedule ends at.
        decay_fraction: The share of `steps` in which "wsd" decays.
        beta1: AdamW's decay of the first moment.
        beta2: AdamW's decay of the second moment.
        eps: AdamW's term that keeps the denominator from zero.
        weight_decay: Decoupled decay, on matrices only.
        clip: Largest norm of the gradient over all parameters; larger ones are scaled down to it.
        freeze: Name patterns (as in file names: `blocks.0.*`) of what is not trained; `run.unfreeze` thaws it. What is
            frozen from the start needs neither gradients nor AdamW's two moments: 12 bytes a number less.
        seed: Data order and samples.
        precision: "float32", "bfloat16" (bfloat16 weights beside a float32 master copy), or "auto": what the
            machine multiplies faster.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU where there is one.
        num_threads: CPU threads; `None` is what torch has chosen. Recorded, since sums depend on it.
        validation_interval: Steps between measurements on held-out text; 0 for the end only.
        validation_tokens: About so many held-out tokens are measured, spread over the text.
        sample_interval: Steps between samples; 0 for none.
        sample_prompts: What the samples continue.
        sample_tokens: Length of a sample.
        checkpoint_interval: Steps between checkpoints; 0 for the first and last only.
        keep_checkpoints: So many are kept; the first one always is.
        max_bad_steps: After so many steps in a row with a loss or gradient that is not finite, the run ends.
        rules: What the run does by itself when a condition holds: `[nb.rules.nan(), nb.rules.plateau()]`.
    """

    objective: str = "causal_lm"
    steps: int = 1000
    batch_size: int = 8
    sequence_length: int = 256
    accumulation: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int | None = None
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    freeze: tuple[str, ...] = ()
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    num_threads: int | None = None
    validation_interval: int = 100
    validation_tokens: int = 100_000
    sample_interval: int = 100
    sample_prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 64
    checkpoint_interval: int = 100
    keep_checkpoints: int = 20
    max_bad_steps: int = 5
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "steps", "batch_size", "sequence_length", "accumulation", "eps", "clip")
        check_positive(self, "keep_checkpoints", "max_bad_steps", "validation_tokens", "sample_tokens")
        check_choice(self, "objective", tuple(OBJECTIVES))
        check_choice(self, "precision", ("auto", "float32", "bfloat16"))
        check_choice(self, "schedule", tuple(schedules))
        for name in ("lr", "weight_decay", "warmup_steps", "validation_interval", "sample_interval"):
            self._check_range(name, 0, _HUGE)
        self._check_range("checkpoint_interval", 0, _HUGE)
        self._check_range("lr", 0, 1)
        self._check_range("clip", 0, 1e6)
        self._check_range("num_threads", 1, 4096)
        for name in ("min_lr_ratio", "decay_fraction"):
            self._check_range(name, 0, 1)
        for name in ("beta1", "beta2"):
            self._check_range(name, 0, 0.999999)
        for name in ("sample_prompts", "freeze"):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{name} must be a list of texts.", where="TrainConfig")
            object.__setattr__(self, name, tuple(texts))
        object.__setattr__(self, "rules", check_rules(self.rules))

    def _check_range(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            raise UserError(
                f"{name} must be between {low:g} and {high:g}, not {value!r}.", where="TrainConfig"
            )

    @property
    def warmup(self) -> int:
        """Steps of warm-up, with the default filled in."""
        return max(1, self.steps // 20) if self.warmup_steps is None else self.warmup_steps
