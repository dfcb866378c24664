"""A training step and a forward pass of an encoder, beside transformers' of the same shape, in turn in one process.

python tests/bench/bench_encoder.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from torch import Tensor

from nbllm.models import Encoder, make_config
from nbllm.objectives import MaskedLM

LAYERS, WIDTH, HEADS, VOCABULARY, BATCH, LENGTH = 6, 384, 12, 30522, 8, 128


def batch() -> dict[str, Tensor]:
    """Return random tokens, 15% of them to be predicted."""
    is_special = np.arange(VOCABULARY) < 5
    rng = np.random.default_rng(0)
    return dict(MaskedLM(4, is_special).batch(rng.integers(5, VOCABULARY, (BATCH, LENGTH)), rng))


def contestants(dtype: torch.dtype) -> dict[str, tuple[Callable[[], Tensor], torch.nn.Module]]:
    """Return what computes the loss, and the model, of each."""
    data = batch()
    own = Encoder(make_config("minilm-l6")).to(dtype)
    config = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = transformers.BertForMaskedLM(config).to(dtype).train()
    objective = MaskedLM(4, np.arange(VOCABULARY) < 5)

    def own_loss() -> Tensor:
        loss, count = objective.loss(own, data)
        return loss / count

    return {
        "nbllm": (own_loss, own),
        "transformers": (lambda: theirs(data["inputs"], labels=data["targets"]).loss, theirs),
    }


def measure(loss: Callable[[], Tensor], model: torch.nn.Module, *, trains: bool) -> float:
    """Return the seconds of one training step without the optimizer, or of one forward pass."""
    start = time.perf_counter()
    if trains:
        loss().backward()
        model.zero_grad(set_to_none=True)
    else:
        with torch.inference_mode():
            loss()
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(os.cpu_count() or 1)
    for dtype in (torch.float32, torch.bfloat16):
        both = contestants(dtype)
        for name, trains in (("forward and loss", False), ("training step", True)):
            seconds: dict[str, list[float]] = {each: [] for each in both}
            for turn in range(rounds + 1):
                for each, (loss, model) in both.items():
                    taken = measure(loss, model, trains=trains)
                    if turn:
                        seconds[each].append(taken)
            own, theirs = (statistics.median(seconds[each]) for each in ("nbllm", "transformers"))
            print(
                f"{dtype}, {name}: {own:.3f} s, transformers {theirs:.3f} s ({theirs / own:.2f}x)", flush=True
            )


if __name__ == "__main__":
    main()
