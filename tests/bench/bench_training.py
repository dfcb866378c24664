"""How fast we train beside transformers: `python tests/bench/bench_training.py --help`.

The same GPT-2 (6 layers, 384 wide, 6 heads, 4,096 tokens, 8 x 256 tokens a step, no dropout), the same precision
and fused AdamW; every contestant in turn in one process, the machine's matmul rates in the same rounds.
What counts is the best step of each: other work on the machine only ever adds time. Nothing is asserted.

transformers runs as it comes, and once more within `kept_memory`, which our trainer uses. In bfloat16 it runs with
autocast (float32 weights) and with bfloat16 weights; ours has bfloat16 weights and a float32 master, as our
trainer does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from nbllm.core.allocator import kept_memory
from nbllm.core.machine import machine_facts
from nbllm.distributed.layout import OneProcess
from nbllm.models import Decoder, ModelConfig
from nbllm.nn.attention_backends import choose
from nbllm.objectives import CausalLM
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW

LAYERS, WIDTH, HEADS, WORDS, BATCH, LENGTH = 6, 384, 6, 4096, 8, 256
TOKENS = BATCH * LENGTH
# Of each matrix of the model: rows out, rows in, how many there are.
MATRICES = [
    (3 * WIDTH, WIDTH, LAYERS),
    (WIDTH, WIDTH, LAYERS),
    (4 * WIDTH, WIDTH, LAYERS),
    (WIDTH, 4 * WIDTH, LAYERS),
    (WORDS, WIDTH, 1),
]
Step = Callable[[], float]


def operations_of_a_step() -> float:
    """Floating-point operations of a step's matmuls: three a matrix, and attention below the diagonal."""
    matrices = sum(3 * 2 * TOKENS * out * into * count for out, into, count in MATRICES)
    return matrices + 3 * LAYERS * 2 * 2 * BATCH * LENGTH * (LENGTH + 1) / 2 * WIDTH


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, WORDS, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def transformers_step(precision: str, *, autocast: bool) -> Step:
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config).train()
    if precision == "bfloat16" and not autocast:
        model.bfloat16()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = batch()

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(input_ids=inputs, use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        adamw.step()
        adamw.zero_grad()
        return float(loss.detach())

    return step


def own_step(precision: str, attention: str) -> Step:
    model = Decoder(
        ModelConfig(
            family="gpt2",
            vocab_size=WORDS,
            hidden_size=WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            max_positions=LENGTH,
        )
    ).train()
    model.attention_backend = attention
    optimizer = Optimizer(OneProcess(model, dtype=getattr(torch, precision)), AdamW)
    optimizer.configure(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    objective = CausalLM()
    inputs, targets = batch()

    def step() -> float:
        loss, count = objective.loss(model, {"inputs": inputs, "targets": targets})
        loss = loss / count
        loss.backward()
        optimizer.layout.take_gradients()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def chosen_attention(precision: str) -> str:
    heads = torch.zeros(
        BATCH, HEADS, LENGTH, WIDTH // HEADS, dtype=getattr(torch, precision), requires_grad=True
    )
    return choose(heads, heads, causal=True, mask=None)


class Rates:
    """The machine's rate of matmuls, the best over all rounds: at the model's shapes and at a large one."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.tests = []
        for out, into, count in MATRICES:
            x, weight, grad = (
                torch.randn(*s).to(dtype) for s in ((TOKENS, into), (out, into), (TOKENS, out))
            )
            self.tests += [(x, weight.t(), count), (grad, weight, count), (grad.t(), x, count)]
        side = torch.randn(2048, 2048).to(dtype)
        self.square = (side, side.t(), 1)
        self.best: dict[int, float] = collections.defaultdict(lambda: float("inf"))

    def measure(self) -> None:
        for place, (left, right, _) in enumerate([*self.tests, self.square]):
            out = left @ right
            began = time.perf_counter()
            torch.mm(left, right, out=out)
            self.best[place] = min(self.best[place], time.perf_counter() - began)

    def model(self) -> float:
        work = sum(2 * left.numel() * right.shape[1] * count for left, right, count in self.tests)
        return work / sum(self.best[place] * count for place, (*_, count) in enumerate(self.tests))

    def large(self) -> float:
        return 2 * 2048**3 / self.best[len(self.tests)]


def compare(precision: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Run every contestant in turn; print and return the seconds of their timed steps."""
    attention = chosen_attention(precision)
    print(f"\n{precision}; our attention: {attention}")
    contestants: dict[str, tuple[Step, Any]] = {}
    if precision == "float32":
        plain = transformers_step(precision, autocast=False)
        contestants["transformers, as it comes"] = (plain, contextlib.nullcontext)
        contestants["transformers, kept memory"] = (plain, kept_memory)
    else:
        for name, autocast in (("autocast", True), ("bf16 weights", False)):
            plain = transformers_step(precision, autocast=autocast)
            contestants[f"transformers, {name}"] = (plain, contextlib.nullcontext)
            contestants[f"transformers, {name}, kept"] = (plain, kept_memory)
    contestants["nbllm"] = (own_step(precision, attention), kept_memory)
    rates = {name: Rates(getattr(torch, name)) for name in dict.fromkeys(("float32", precision))}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (step, memory) in contestants.items():
            with memory():
                step()  # its memory and caches are warm again
                for _ in range(steps):
                    began = time.perf_counter()
                    step()
                    seconds[name].append(time.perf_counter() - began)
        for rate in rates.values():
            rate.measure()
    report(seconds, rates)
    return seconds


def report(seconds: dict[str, list[float]], rates: dict[str, Rates]) -> None:
    def median(times: list[float]) -> float:
        return sorted(times)[len(times) // 2]

    own = seconds["nbllm"]
    print(f"{'':34}{'tokens/s':>9}{'median':>9}{'GFLOP/s':>9}{'nbllm is':>11}{'by median':>11}")
    for name, times in seconds.items():
        speed = operations_of_a_step() / min(times) / 1e9
        ratio, by_median = min(times) / min(own), median(times) / median(own)
        print(
            f"{name:34}{TOKENS / min(times):9,.0f}{TOKENS / median(times):9,.0f}{speed:9.0f}"
            f"{ratio:10.2f}x{by_median:10.2f}x"
        )
    speed = operations_of_a_step() / min(own)
    for name, rate in rates.items():
        print(
            f"{name} matmuls: {rate.model() / 1e9:.0f} GFLOP/s at the model's shapes, {rate.large() / 1e9:.0f} at "
            f"2048 squared; nbllm reaches {speed / rate.model():.0%} and {speed / rate.large():.0%}"
        )


KINDS = {
    "matmuls": ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise"),
    "attention": ("_PerHead", "aten::bmm", "aten::baddbmm", "scaled_dot", "_Blocked", "aten::_softmax"),
    "activation": ("_Gelu", "_SwiGLU", "gelu", "tanh", "pow", "sigmoid", "addcmul"),
    "normalization": ("layer_norm", "Normalize"),
    "optimizer": ("adamw", "AdamW"),
    "loss": ("log_softmax", "nll_loss", "_LinearCrossEntropy"),
    "element by element": ("aten::add", "aten::mul", "aten::sum"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_"),
}


def breakdown(name: str, step: Step) -> None:
    """Print where a step's time goes, by kind of operation and by the costliest operations."""
    with kept_memory():
        step()
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(3):
                step()
    totals: dict[str, float] = collections.Counter()
    by_name: dict[str, float] = collections.Counter()
    for event in profile.key_averages():
        kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        totals[kind] += event.self_cpu_time_total / 3e3
        by_name[event.key] += event.self_cpu_time_total / 3e3
    whole = sum(totals.values())
    print(f"\nwhere a step of {name} goes, {whole:.0f} ms with the profiler on")
    for kind, spent in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"  {spent:7.1f} ms {spent / whole:6.1%}  {kind}")
    for operation, spent in sorted(by_name.items(), key=lambda item: -item[1])[:12]:
        print(f"      {spent:7.1f} ms  {operation}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--precision", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--rounds", type=int, default=6, help="turns of every contestant")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a turn, after one that is not")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads")
    parser.add_argument("--breakdown", action="store_true", help="profile a step of each as well")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = machine_facts()
    print(f"{facts['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}; {operations_of_a_step() / 1e9:.0f} GFLOP a step")
    for precision in options.precision:
        compare(precision, options.rounds, options.steps)
        if options.breakdown:
            breakdown("transformers", transformers_step(precision, autocast=precision == "bfloat16"))
            breakdown("nbllm", own_step(precision, chosen_attention(precision)))


if __name__ == "__main__":
    main()
