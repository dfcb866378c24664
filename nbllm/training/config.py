"""What a training run is told before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from nbllm.core.config import PlainConfig, check_choice, check_plain_types, check_positive
from nbllm.core.errors import RefusedError, UserError, nearest
from nbllm.objectives import OBJECTIVES
from nbllm.runs.patterns import from_everything
from nbllm.runs.rulebook import check_rules
from nbllm.runs.rules import Rule
from nbllm.runs.settings import Setting
from nbllm.training.arguments import instead_of, our_names
from nbllm.training.hyperparameters import LOOP_SETTINGS, declared_for
from nbllm.training.optimizers import OPTIMIZERS
from nbllm.training.schedules import schedules

MAX_THREADS = 4096
_OWN = ("optimizer_settings", "objective_settings")  # fields whose entries are given beside the others
_MANY = 1e9
_HUGE = 1e12  # far beyond any use, and finite: JSON has no infinity


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(PlainConfig):
    """Configuration of a run. What may change while it runs is declared in `training.hyperparameters`.

    The optimizer's and the objective's own settings are given by name beside the fields, as in
    `nb.train(lm, data, weight_decay=0.05)` and `TrainConfig.from_dict`; `to_dict` returns them the same way.

    Args:
        objective: What the network is trained for: a name in `nbllm.objectives.OBJECTIVES`, such as "causal_lm",
            "prefix_lm", "masked_lm", "span_corruption" (T5), "denoising" (BART), "blank_infilling" (GLM),
            "mixture_of_denoisers" (UL2) or "fill_in_the_middle".
        objective_settings: The objective's own settings and options by name; what is not given has its default.
        packing: How documents share a sequence: "concatenated", each token seeing all before it, also of other
            documents; or "isolated", each seeing only its own document, in which positions are counted anew.
        steps: Optimizer steps in all.
        batch_size: Sequences in one forward pass. When it is not given, `nb.train` takes fewer long ones.
        sequence_length: Tokens in one sequence. When it is not given, `nb.train` takes fewer where the model has fewer
            positions, or the text fewer tokens than a batch.
        accumulation: Forward passes whose gradients make one step.
        lr: Peak learning rate; the schedule multiplies it. Its usual size depends on the optimizer.
        schedule: "cosine", "linear", "wsd" (warm-up, stable, decay) or "constant", each after a linear warm-up.
        warmup_steps: Steps of linear warm-up; `None` is a twentieth of `steps`.
        min_lr_ratio: The share of `lr` that the schedule ends at.
        decay_fraction: The share of `steps` in which "wsd" decays.
        optimizer: A name in `nbllm.training.optimizers.OPTIMIZERS`: "adamw"; "adamw_8bit", whose moments take 2 bytes
            for each element instead of 8; "muon", for the matrices of the blocks, with AdamW for the rest, at AdamW's
            learning rate; "lion", at a third to a tenth of it; or "adafactor", which keeps next to no state, at about
            0.01.
        optimizer_settings: The optimizer's own settings by name; what is not given has the optimizer's default. For
            "adamw": beta1, beta2, eps, weight_decay. Each can be changed while the run goes on.
        clip: Largest norm of the gradient over all parameters; larger ones are scaled down to it.
        freeze: Patterns of the parameters that are not trained: "embedding", "layers[:4]" (the first four),
            "!layers[-2:]" (all but the last two), transformers' names; see `nbllm.training.freezing`. `run.unfreeze`
            trains them later. What is frozen from the start needs neither gradients nor AdamW's two moments: 12 bytes
            less for each element.
        seed: Data order and samples.
        precision: "float32"; "bfloat16" (bfloat16 weights beside a float32 master copy); "float16" (the same, and the
            loss is scaled); "float8" (bfloat16, and the linear layers of blocks multiply in float8); or "auto":
            whichever of the first two the machine trains faster in.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU where there is one.
        num_threads: CPU threads; `None` is what torch has chosen. Recorded, since sums depend on it.
        validation_interval: Steps between measurements on held-out text; 0 for the end only.
        validation_tokens: Roughly how many held-out tokens are measured, spread over the text.
        sample_interval: Steps between samples; 0 for none.
        sample_prompts: What the samples continue.
        sample_tokens: Length of a sample.
        checkpoint_interval: Steps between checkpoints; 0 for the first and last only.
        keep_checkpoints: How many checkpoints are kept; the first one always is.
        max_bad_steps: The run ends after this many steps in a row with a loss or gradient that is not finite.
        rules: What the run does on its own when a condition holds: `[nb.rules.nan(), nb.rules.plateau()]`.
    """

    objective: str = "causal_lm"
    objective_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packing: str = "concatenated"
    steps: int = 1000
    batch_size: int = 8
    sequence_length: int = 1024
    accumulation: int = 1
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int | None = None
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2
    optimizer: str = "adamw"
    optimizer_settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping that holds the optimizer's and the objective's settings beside the fields.

        Names of other libraries are taken too, where they mean the same: `learning_rate`, `max_steps`, `block_size`.

        Raises:
            UserError: A name is unknown (the nearest is named) or given twice, a value of another type or out of range.
        """
        values = our_names(values)
        names = cls.names(values)
        for key in values:
            if key not in names and key not in _OWN:
                raise UserError(f"{cls.__name__} has no setting {key!r}.", hint=instead_of(key, names))
        fields = {field.name for field in dataclasses.fields(cls)}
        others = {name: value for name, value in values.items() if name in fields}
        of_objective = _settings_of_objective(values.get("objective", cls.objective))
        for own in _OWN:
            given = values.get(own, {})
            if not isinstance(given, Mapping):
                raise UserError(f"{own} must be settings by name, not {given!r}.")
            others[own] = {**given} | {
                name: value
                for name, value in values.items()
                if name not in fields and (name in of_objective) == (own == "objective_settings")
            }
        return super().from_dict(others)

    @classmethod
    def names(cls, values: Mapping[str, Any]) -> tuple[str, ...]:
        """Return all names that `from_dict` takes beside the optimizer and the objective that `values` name.

        Raises:
            UserError: There is no such optimizer or objective.
        """
        named = {each: values.get(each, getattr(cls, each)) for each in ("optimizer", "objective")}
        named = check_plain_types(cls, named)
        fields = (field.name for field in dataclasses.fields(cls) if field.name not in _OWN)
        of_objective = _settings_of_objective(named["objective"])
        return (
            *fields,
            *of_objective,
            *(setting.name for setting in OPTIMIZERS[named["optimizer"]].settings),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the optimizer's and the objective's settings as plain values that JSON can hold."""
        fields = super().to_dict()
        own: list[dict[str, Any]] = [fields.pop(name) for name in _OWN]
        return fields | own[0] | own[1]

    def __post_init__(self) -> None:
        """Check every range."""
        check_positive(self, "batch_size", "sequence_length")
        check_positive(self, "keep_checkpoints", "max_bad_steps", "validation_tokens", "sample_tokens")
        check_choice(self, "objective", tuple(OBJECTIVES))
        check_choice(self, "packing", ("concatenated", "isolated"))
        check_choice(self, "precision", ("auto", "float32", "bfloat16", "float16", "float8"))
        check_choice(self, "schedule", tuple(schedules))
        for setting in LOOP_SETTINGS:
            object.__setattr__(self, setting.name, _checked(setting, getattr(self, setting.name)))
        object.__setattr__(self, "optimizer_settings", self._checked_optimizer_settings())
        object.__setattr__(self, "objective_settings", self._checked_objective_settings())
        for name in ("warmup_steps", "validation_interval", "sample_interval", "checkpoint_interval"):
            self._check_range(name, 0, _HUGE)
        self._check_range("num_threads", 1, MAX_THREADS)
        for name in ("batch_size", "sequence_length"):
            self._check_range(name, 1, _MANY)
        for name in ("min_lr_ratio", "decay_fraction"):
            self._check_range(name, 0, 1)
        for name in ("sample_prompts", "freeze"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        object.__setattr__(self, "freeze", from_everything(self.freeze))
        object.__setattr__(self, "rules", check_rules(self.rules))

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What may change while the run goes on."""
        return declared_for(self.optimizer, self.objective)

    @property
    def values(self) -> dict[str, float | int]:
        """The value at the start of each of `settings`."""
        own = {
            setting.name: self.objective_settings[setting.name]
            for setting in OBJECTIVES[self.objective].settings
        }
        return {s.name: getattr(self, s.name) for s in LOOP_SETTINGS} | dict(self.optimizer_settings) | own

    def _checked_optimizer_settings(self) -> dict[str, float]:
        declared = {setting.name: setting for setting in OPTIMIZERS[self.optimizer].settings}
        for name in self.optimizer_settings:
            if name not in declared:
                raise UserError(f"{self.optimizer} has no setting {name!r}.", hint=nearest(name, declared))
        return {
            name: _checked(setting, self.optimizer_settings.get(name, setting.default))
            for name, setting in declared.items()
        }

    def _checked_objective_settings(self) -> dict[str, Any]:
        objective = OBJECTIVES[self.objective]
        defaults = _settings_of_objective(self.objective)
        for name in self.objective_settings:
            if name not in defaults:
                raise UserError(f"{self.objective} has no setting {name!r}.", hint=nearest(name, defaults))
        values = {**defaults, **self.objective_settings}
        out = {setting.name: _checked(setting, values[setting.name]) for setting in objective.settings}
        for name, default in objective.options.items():
            kind, value = type(default), values[name]
            if isinstance(value, bool) != (kind is bool) or not isinstance(
                value, (kind, int) if kind is float else kind
            ):
                raise UserError(f"{name} must be such as {default!r}, not {value!r}.", where="TrainConfig")
            out[name] = kind(value)
        return out

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


def _settings_of_objective(name: Any) -> dict[str, Any]:
    """Return the defaults of an objective's settings and options; none of a name that is no text."""
    if not isinstance(name, str):
        return {}
    kind = OBJECTIVES[name]
    return {setting.name: setting.default for setting in kind.settings} | dict(kind.options)


def _checked(setting: Setting, value: Any) -> Any:
    try:
        return setting.check(value)
    except RefusedError as error:
        raise UserError(error.what, where="TrainConfig") from None


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a text or a list of texts.", where="TrainConfig")
    return tuple(texts)
