"""How fast we train GPT-2 on one GPU, beside two others: `python -m tests.bench.gpu_train --help`.

GPT-2 of 124, 355 and 1,558 million parameters, 1,024 tokens a sequence, bfloat16, compiled, fused AdamW, no dropout:

- ours: `nb.train(lm, text, plan=nb.Plan(compile="blocks"))`, as a notebook runs it, on packed text;
- plain: one module after the manner of nanoGPT (`scaled_dot_product_attention`, autocast, `torch.compile` of it all),
  in a loop that does nothing but step;
- transformers: its Trainer on its GPT-2, with `bf16`, `torch_compile` and its fused AdamW.

Each trains in a process of its own, one after another, so that each has the whole memory. What counts is the median of
the second half of the steps. MFU is (tokens a second) x (operations a token of a training step, as
`nb.explain`'s costs count them: 854,438,400 for the smallest) / (the device's rate): the rate of a large matmul,
measured in the same process, and beside it the maker's figure where it is known. Without a CUDA device nothing is run.
`--tiny` tries the script on any machine; what it prints then means nothing.

Source: Karpathy, nanoGPT (the plain way); Chowdhery et al. 2022, arXiv:2204.02311, appendix B (MFU).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH = 50304, 1024  # GPT-2's 50,257 tokens, filled up to a multiple of 64 as nanoGPT does
MAKERS_RATES = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # dense, bfloat16


class Size(NamedTuple):
    """A model, and how many of its sequences one forward pass takes and one step has."""

    layers: int
    width: int
    heads: int
    sequences: int
    accumulation: int


SIZES = {
    "124M": Size(12, 768, 12, 32, 4),
    "355M": Size(24, 1024, 16, 16, 8),
    "1558M": Size(48, 1600, 25, 8, 16),
}
TINY = Size(2, 64, 2, 2, 2)


class Contest(NamedTuple):
    """What every contestant is told."""

    size: Size
    vocabulary: int
    length: int
    device: str
    steps: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.size.sequences * self.size.accumulation * self.length


def ours(contest: Contest) -> list[float]:
    """Seconds of each step of a run of ours."""
    import nbllm as nb

    text = nb.data.load("pydocs")
    lm = nb.LM.new(
        "gpt2",
        tokenizer=nb.data.train_tokenizer(text, vocab_size=min(4096, contest.vocabulary)),
        vocab_size=contest.vocabulary,
        num_layers=contest.size.layers,
        hidden_size=contest.size.width,
        num_heads=contest.size.heads,
        max_positions=contest.length,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = nb.train(
            lm, text, folder=folder, name="bench", plan=nb.Plan(compile="blocks"), steps=contest.steps,
            batch_size=contest.size.sequences, accumulation=contest.size.accumulation,
            sequence_length=contest.length, precision="bfloat16", device=contest.device, lr=3e-4,
            checkpoint_interval=0, validation_interval=0, sample_interval=0,
        )  # fmt: skip
        run.wait(progress=False)
        return [contest.tokens / speed for speed in run.history("tokens_per_second")[1].tolist()]


class Block(nn.Module):
    """A block of GPT-2, written plainly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.together, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.together(self.norm(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second_norm(x)), approximate="tanh"))


class Plain(nn.Module):
    """GPT-2, written plainly, with its loss."""

    def __init__(self, contest: Contest) -> None:
        super().__init__()
        size = contest.size
        self.embedding = nn.Embedding(contest.vocabulary, size.width)
        self.positions = nn.Embedding(contest.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(inputs) + self.positions.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain(contest: Contest) -> list[float]:
    """Seconds of each step of the plain module."""
    torch.set_float32_matmul_precision("high")
    model = Plain(contest).to(contest.device)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    compiled: Callable[..., Tensor] = torch.compile(model)
    batches = _batches(contest)
    times = []
    for _ in range(contest.steps):
        began = time.perf_counter()
        for _ in range(contest.size.accumulation):
            with torch.autocast(contest.device, torch.bfloat16):
                loss = compiled(*next(batches)) / contest.size.accumulation
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        float(loss)  # waits for the device
        times.append(time.perf_counter() - began)
    return times


def _batches(contest: Contest) -> Any:
    """Yield inputs and targets, for ever."""
    shape = (contest.size.sequences, contest.length + 1)
    while True:
        ids = torch.randint(0, contest.vocabulary, shape).to(contest.device, non_blocking=True)
        yield ids[:, :-1], ids[:, 1:]


def transformers(contest: Contest) -> list[float]:
    """Seconds of each step of transformers' Trainer."""
    import transformers as hf

    size = contest.size
    model = hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=contest.vocabulary, n_positions=contest.length, n_embd=size.width, n_layer=size.layers,
            n_head=size.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
            attn_implementation="sdpa", use_cache=False,
        )
    )  # fmt: skip
    times: list[float] = []

    class Clock(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if contest.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.began)

    count = contest.steps * size.sequences * size.accumulation
    ids = torch.randint(0, contest.vocabulary, (min(count, 4096), contest.length))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        settings = hf.TrainingArguments(
            output_dir=folder, max_steps=contest.steps, per_device_train_batch_size=size.sequences,
            gradient_accumulation_steps=size.accumulation, bf16=True, torch_compile=True, learning_rate=3e-4,
            optim="adamw_torch_fused", adam_beta2=0.95, weight_decay=0.1, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=contest.device == "cuda",
            use_cpu=contest.device == "cpu",
        )  # fmt: skip
        hf.Trainer(model=model, args=settings, train_dataset=rows, callbacks=[Clock()]).train()
    return times


CONTESTANTS = {"ours": ours, "plain": plain, "transformers": transformers}


def matmul_rate(device: str) -> float:
    """Operations a second of a large matmul in bfloat16, the best of several."""
    side = 8192 if device == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = math.inf
    for _ in range(10):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def operations_a_token(contest: Contest) -> float:
    """Return the operations of a training step for each token, every score of attention counted."""
    from nbllm.models import ModelConfig
    from nbllm.models.costs import count_costs

    size = contest.size
    shape = ModelConfig(
        family="gpt2", vocab_size=contest.vocabulary, hidden_size=size.width, num_layers=size.layers,
        num_heads=size.heads, max_positions=contest.length,
    )  # fmt: skip
    return 3 * count_costs(shape, sequence_length=contest.length).flops_per_token


def run_one(name: str, contest: Contest) -> dict[str, float]:
    """Let one contestant train, in this process, and say how it went."""
    rate = matmul_rate(contest.device)
    times = CONTESTANTS[name](contest)
    peak = torch.cuda.max_memory_allocated() if contest.device == "cuda" else 0
    return {
        "first": times[0],
        "seconds": statistics.median(times[contest.steps // 2 :]),
        "peak": peak,
        "rate": rate,
    }


def in_a_process(name: str, contest: Contest) -> dict[str, float]:
    """Let one contestant train in a process of its own."""
    told = json.dumps([name, *contest.size, *contest[1:]])
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gpu_train", "--one", told], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--who", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--steps", type=int, default=16, help="of which the second half counts")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on any machine, to try the script")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        name, *numbers = json.loads(chosen.one)
        print(json.dumps(run_one(name, Contest(Size(*numbers[:5]), *numbers[5:]))))
        return
    if not (torch.cuda.is_available() or chosen.tiny):
        print("There is no CUDA device: nothing is measured.")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    makers = next((rate for name, rate in MAKERS_RATES.items() if name in where), None)
    print(f"{where}, torch {torch.__version__}; {LENGTH} tokens a sequence, bfloat16, compiled")
    sizes = {"tiny": TINY} if chosen.tiny else {name: SIZES[name] for name in chosen.sizes}
    print(
        f"{'model':6} {'':13} {'tokens/s':>10} {'MFU':>7} {'of makers':>10} {'memory':>9} {'first step':>11}"
    )
    for label, size in sizes.items():
        contest = (
            Contest(size, 512, 64, device, 4)
            if chosen.tiny
            else Contest(size, VOCABULARY, LENGTH, device, chosen.steps)
        )
        operations, speeds = operations_a_token(contest), {}
        for name in chosen.who:
            found = in_a_process(name, contest)
            speeds[name] = speed = contest.tokens / found["seconds"]
            share = f"{speed * operations / makers:10.1%}" if makers else f"{'':10}"
            print(
                f"{label:6} {name:13} {speed:10,.0f} {speed * operations / found['rate']:7.1%} {share} "
                f"{found['peak'] / 1e9:6.1f} GB {found['first']:9.1f} s", flush=True,
            )  # fmt: skip
        for name, speed in speeds.items():
            if name != "ours" and "ours" in speeds:
                print(f"{label:6} ours / {name}: {speeds['ours'] / speed:.2f}")


if __name__ == "__main__":
    main()
