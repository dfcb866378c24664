"""How positions enter a model: one file for each scheme, and the table of all."""

from __future__ import annotations

from nbllm.nn.positions.alibi import ALiBiPositions
from nbllm.nn.positions.base import Places, Positions, Shape, check_length
from nbllm.nn.positions.learned import LearnedPositions
from nbllm.nn.positions.learned_2d import Learned2DPositions
from nbllm.nn.positions.none import NoPositions
from nbllm.nn.positions.relative_buckets import RelativeBuckets
from nbllm.nn.positions.rotary import RotaryPositions, Rotation, rotate
from nbllm.nn.positions.scaling import RopeScaling
from nbllm.nn.positions.sinusoidal import SinusoidalPositions
from nbllm.nn.positions.transformer_xl import TransformerXLPositions

POSITIONS: dict[str, type[Positions]] = {
    "learned": LearnedPositions,
    "learned_2d": Learned2DPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": RotaryPositions,
    "alibi": ALiBiPositions,
    "relative": RelativeBuckets,
    "transformer_xl": TransformerXLPositions,
    "none": NoPositions,
}


def make_positions(kind: str, shape: Shape) -> Positions:
    """Return the position scheme `kind`, a name in `POSITIONS`, for a model of a shape."""
    return POSITIONS[kind].make(shape)


__all__ = [
    "POSITIONS",
    "ALiBiPositions",
    "Learned2DPositions",
    "LearnedPositions",
    "NoPositions",
    "Places",
    "Positions",
    "RelativeBuckets",
    "RopeScaling",
    "RotaryPositions",
    "Rotation",
    "Shape",
    "SinusoidalPositions",
    "TransformerXLPositions",
    "check_length",
    "make_positions",
    "rotate",
]
