"""What a step of each optimizer costs: `python tests/bench/bench_optimizers.py --help`.

The matrices of a GPT-2 with random gradients; every optimizer in turn, beside torch's fused AdamW and, where there is
one, its reference. Printed are nanoseconds for each element (the best step, without forward and backward passes) and
bytes of state for each element. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

import torch
import transformers
from torch import nn

from nbllm.core.allocator import kept_memory
from nbllm.training.optimizers import OPTIMIZERS


def parameters(width: int, layers: int, device: str) -> dict[str, nn.Parameter]:
    """The matrices of a GPT-2 of 16,384 tokens, with gradients."""
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (16_384, width)}
    for layer in range(layers):
        at = f"blocks.{layer}"
        shapes |= {
            f"{at}.attention.{part}.weight": (width, width) for part in ("query", "key", "value", "output")
        }
        shapes |= {f"{at}.feed_forward.up.weight": (4 * width, width)}
        shapes |= {f"{at}.feed_forward.down.weight": (width, 4 * width), f"{at}.norm.weight": (width,)}
    made = {name: nn.Parameter(torch.randn(shape, device=device)) for name, shape in shapes.items()}
    for parameter in made.values():
        parameter.grad = torch.randn_like(parameter)
    return made


def ours(name: str, held: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """One of our optimizers, with its defaults."""
    optimizer = OPTIMIZERS[name](held)
    settings = {setting.name: setting.default or 0.0 for setting in OPTIMIZERS[name].settings}
    optimizer.configure(lr=1e-4, **settings)
    return optimizer


def main() -> None:
    """Take the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    held = parameters(options.width, options.layers, options.device)
    elements = sum(parameter.numel() for parameter in held.values())
    matrices = [p for name, p in held.items() if p.ndim == 2 and name.startswith("blocks.")]
    rest = [p for p in held.values() if not any(p is each for each in matrices)]
    contestants = {
        "torch AdamW fused": [torch.optim.AdamW(held.values(), fused=True)],
        **{name: [ours(name, held)] for name in OPTIMIZERS},
        "torch Adafactor": [torch.optim.Adafactor(held.values())],
        "transformers Adafactor": [transformers.optimization.Adafactor(list(held.values()))],
        "torch Muon + AdamW": [torch.optim.Muon(matrices), torch.optim.AdamW(rest, fused=True)],
    }
    print(f"{elements:,} elements on {options.device}")
    first = 0.0
    for name, optimizers in contestants.items():
        best = float("inf")
        for _ in range(options.rounds + 1):
            began = time.perf_counter()
            for optimizer in optimizers:
                optimizer.step()
            if options.device != "cpu":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        first = first or best
        held_bytes = sum(
            value.nbytes
            for optimizer in optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        print(
            f"{name:24} {best / elements * 1e9:7.2f} ns an element, {best / first:6.2f} x AdamW, "
            f"{held_bytes / elements:5.2f} bytes of state an element"
        )
        for optimizer in optimizers:
            optimizer.state.clear()


if __name__ == "__main__":
    with kept_memory():  # as in a run
        main()
