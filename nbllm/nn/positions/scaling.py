"""How rotary frequencies are scaled, so that a model reads longer texts than it was first trained on."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.core.config import PlainConfig, check_choice, check_positive
from nbllm.core.errors import UserError

_SETTINGS = {  # of each kind, besides the factor
    "linear": (),
    "dynamic": ("original_max_positions",),
    "yarn": ("original_max_positions", "attention_factor", "beta_fast", "beta_slow", "truncate"),
    "llama3": ("original_max_positions", "low_freq_factor", "high_freq_factor"),
}

_RANGES = (
    ("factor", 1, 1e6), ("original_max_positions", 0, 1 << 31), ("attention_factor", 0, 1e6),
    *((name, 1e-6, 1e6) for name in ("beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling(PlainConfig):
    """A scaling of rotary frequencies.

    Attributes:
        kind: "linear" divides all frequencies (Chen et al. 2023, arXiv:2306.15595). "dynamic" raises their base with
            the length of the text, once that exceeds the original context (NTK-aware scaling). "yarn" divides the low
            frequencies, keeps the high ones and sharpens the scores (Peng et al. 2023, arXiv:2309.00071). "llama3"
            divides the low ones and keeps the high ones (Grattafiori et al. 2024, arXiv:2407.21783).
        factor: By how much the context grows.
        original_max_positions: The context before scaling, in tokens; "linear" needs none.
        attention_factor: Multiplies cosines and sines (YaRN); 0: 0.1 ln(factor) + 1 for YaRN, else 1.
        beta_fast: With at least so many rotations in the original context, a frequency is kept (YaRN).
        beta_slow: With at most so many, it is divided (YaRN).
        truncate: Whether the components at these borders are rounded to whole ones (YaRN).
        low_freq_factor: Wavelengths beyond original_max_positions / low_freq_factor are divided (LLaMA 3).
        high_freq_factor: Those below original_max_positions / high_freq_factor are kept (LLaMA 3).
    """

    kind: str
    factor: float
    original_max_positions: int = 0
    attention_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        check_choice(self, "kind", tuple(_SETTINGS))
        where = type(self).__name__
        for name, least, most in _RANGES:
            if not least <= getattr(self, name) <= most:
                raise UserError(
                    f"{name} must be between {least:g} and {most:g}, not {getattr(self, name)!r}.",
                    where=where,
                )
        for field in dataclasses.fields(self):
            of_this_kind = field.name in ("kind", "factor", *_SETTINGS[self.kind])
            changed = getattr(self, field.name) != field.default
            if (
                not of_this_kind
                and changed
                and (field.name, self.attention_factor) != ("attention_factor", 1)
            ):
                raise UserError(f"{field.name} is not a setting of {self.kind!r}.", where=where)
        if "original_max_positions" in _SETTINGS[self.kind]:
            check_positive(self, "original_max_positions")
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if not getattr(self, low) < getattr(self, high):
                raise UserError(f"{low} must be less than {high}.", where=where)
        if not self.attention_factor:
            sharpened = 0.1 * math.log(self.factor) + 1.0
            object.__setattr__(self, "attention_factor", sharpened if self.kind == "yarn" else 1.0)

    @property
    def label(self) -> str:
        """Its name in tables for people."""
        names = {
            "linear": "linearly",
            "dynamic": "by dynamic NTK",
            "yarn": "by YaRN",
            "llama3": "as in LLaMA 3",
        }
        return f"scaled {self.factor:g} times {names[self.kind]}"

    @property
    def max_positions(self) -> int:
        """The context after scaling, in tokens."""
        return int(self.factor * self.original_max_positions)

    def depends_on_length(self, length: int) -> bool:
        """Return whether, in a text of so many tokens, each further token changes the frequencies."""
        return self.kind == "dynamic" and length > self.original_max_positions

    def frequencies(self, theta: float, dim: int) -> Float[Tensor, " half"]:
        """Return the scaled frequencies of texts within which none depends on the length: (dim / 2,), on the CPU."""
        plain = frequencies(theta, dim)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "yarn":
            return self._yarn(theta, dim)
        if self.kind == "llama3":
            return self._llama3(plain)
        return plain

    def frequencies_of_lengths(
        self, theta: float, dim: int, lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch half"]:
        """Return the frequencies of "dynamic" for texts of so many tokens: (batch, dim / 2)."""
        original = self.original_max_positions
        lengths = lengths.clamp(min=original)
        bases = theta * ((self.factor * lengths / original) - (self.factor - 1)) ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=lengths.device) / dim
        return 1.0 / bases.float()[:, None] ** exponents

    def _yarn(self, theta: float, dim: int) -> Tensor:
        """Blend kept and divided frequencies along a ramp; in transformers' own order of operations."""

        def component(rotations: float) -> float:
            """Return which component rotates so often within the original context."""
            return (
                dim
                * math.log(self.original_max_positions / (rotations * 2 * math.pi))
                / (2 * math.log(theta))
            )

        first, last = component(self.beta_fast), component(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dim - 1)
        last = last if first != last else last + 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
        wavelengths = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        kept = 1 - ramp
        return 1.0 / (self.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept

    def _llama3(self, plain: Tensor) -> Tensor:
        """Divide the low frequencies, blend those between; in transformers' own order of operations."""
        original, low, high = self.original_max_positions, self.low_freq_factor, self.high_freq_factor
        wavelengths = 2 * math.pi / plain
        out = torch.where(wavelengths > original / low, plain / self.factor, plain)
        smooth = (original / wavelengths - low) / (high - low)
        blended = (1 - smooth) * out / self.factor + smooth * out
        between = (wavelengths >= original / high) & (wavelengths <= original / low)
        return torch.where(between, blended, out)


def frequencies(theta: float, dim: int) -> Float[Tensor, " half"]:
    """Return the frequencies theta^(-2i / dim), (dim / 2,), on the CPU.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """
    # In transformers' own order of operations, so that both agree to the last bit.
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
