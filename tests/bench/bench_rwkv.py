"""Print how many times as fast as in transformers RWKV-4 trains and reads here, in turn in one process.

    python tests/bench/bench_rwkv.py [--length 256] [--batch 4]

Same shape, same tokens, float32; of each, the best of `--repeats` after one that is not counted. transformers computes
the running means in a loop in Python on the CPU: its compiled kernel is for CUDA.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from nbllm.models.network import build
from nbllm.models.presets import make_config
from nbllm.objectives import CausalLM

SHAPE = {"vocab_size": 4096, "hidden_size": 384, "num_layers": 6}


def best(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    ours = build(make_config("rwkv", max_positions=given.length, **SHAPE)).train()
    config = transformers.RwkvConfig(
        vocab_size=4096, hidden_size=384, num_hidden_layers=6, context_length=given.length, rescale_every=0
    )
    theirs = transformers.RwkvForCausalLM(config).train()
    ids = torch.randint(4096, (given.batch, given.length + 1), generator=torch.Generator().manual_seed(0))
    objective = CausalLM()
    batch = objective.batch(ids.numpy(), None)

    def their_loss() -> Tensor:
        logits = theirs(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    def reading(model: torch.nn.Module) -> Callable[[], object]:
        @torch.no_grad()
        def read() -> Tensor:
            out = model(ids[:, :-1])
            return out if isinstance(out, Tensor) else out.logits

        return read

    steps = {
        "training step": (lambda: objective.loss(ours, batch)[0].backward(), lambda: their_loss().backward()),
        "reading": (reading(ours), reading(theirs)),
    }
    for name, (mine, other) in steps.items():
        seconds = best(mine, given.repeats), best(other, given.repeats)
        print(
            f"{name}, {given.batch} x {given.length} tokens: ours {1e3 * seconds[0]:.0f} ms, transformers "
            f"{1e3 * seconds[1]:.0f} ms: {seconds[1] / seconds[0]:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
