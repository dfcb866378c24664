"""Steps of two processes, beside accelerate with transformers: `python -m tests.bench.bench_data_parallel --help`.

A GPT-2 in float32 on the CPU, AdamW, the same batches, one thread a process, gloo. "ddp" is data parallelism: our
`Plan()` beside accelerate's DistributedDataParallel; "zero3" is our `Plan(zero=3)` beside accelerate's FSDP2. Both take
a step in turn in the same two processes; nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

LENGTH, BATCH = 256, 2
SHAPE = {"layers": 6, "width": 384, "heads": 6, "vocabulary": 4096}
Step = Callable[[int], float]


def batch(number: int, rank: int) -> Any:
    """Return the tokens of a step of a rank: (batch, LENGTH + 1)."""
    import torch

    generator = torch.Generator().manual_seed(2 * number + rank)
    return torch.randint(SHAPE["vocabulary"], (BATCH, LENGTH + 1), generator=generator)


def ours(zero: int) -> Step:
    """Return what takes a step as a run's loop does: the layout, the optimizer, clipping."""
    import torch

    from nbllm.core.allocator import kept_memory
    from nbllm.distributed import Plan, ProcessGroup, lay_out
    from nbllm.models import build, make_config
    from nbllm.nn.compute.decisions import ComputeChoices, use_choices
    from nbllm.objectives import CausalLM
    from nbllm.training import TrainConfig
    from nbllm.training.optim import Optimizer
    from nbllm.training.optimizers.adamw import AdamW
    from nbllm.training.run_choices import make_choices

    config = make_config(
        "gpt2", vocab_size=SHAPE["vocabulary"], hidden_size=SHAPE["width"], num_layers=SHAPE["layers"],
        num_heads=SHAPE["heads"], max_positions=LENGTH,
    )  # fmt: skip
    ranks = ProcessGroup()
    settings = TrainConfig(batch_size=BATCH, sequence_length=LENGTH, precision="float32", num_threads=1)
    mine = make_choices(settings, config, processes=ranks.size)["choices"] if ranks.rank == 0 else None
    choices = ranks.broadcast(mine)
    network = build(config, seed=1).train()
    network.attention_backend = choices["attention"]
    layout = lay_out(network, Plan(zero=zero), ranks)
    optimizer, objective = Optimizer(layout, AdamW), CausalLM()

    def step(number: int) -> float:
        tokens = batch(number, ranks.rank)
        given = {"inputs": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
        count = ranks.size * BATCH * LENGTH
        with kept_memory(), use_choices(ComputeChoices.from_record(choices)):
            sums = layout.forward_backward([given], lambda net, b: (*objective.loss(net, b), None), count)
            total = torch.tensor(sums, dtype=torch.float64)
            layout.sum([total])
            optimizer.clip(1.0)
            optimizer.configure(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
            optimizer.step()
            optimizer.zero_grad()
        return float(total[0] / total[1])

    return step


def theirs(zero: int) -> Step:
    """Return what takes a step as accelerate's examples do."""
    import torch
    import transformers
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    config = transformers.GPT2Config(
        vocab_size=SHAPE["vocabulary"], n_positions=LENGTH, n_embd=SHAPE["width"], n_layer=SHAPE["layers"],
        n_head=SHAPE["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        attn_implementation="sdpa",
    )  # fmt: skip
    plugin = None
    if zero == 3:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, reshard_after_forward=True, auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["GPT2Block"], cpu_ram_efficient_loading=False,
        )  # fmt: skip
    accelerator = Accelerator(cpu=True)
    if plugin is not None:  # on the CPU it would take DDP instead, though its FSDP2 works there
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(config).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    model, adamw = accelerator.prepare(model, adamw)
    rank, size = accelerator.process_index, accelerator.num_processes
    if rank == 0:
        print(f"accelerate: {accelerator.distributed_type}, {type(next(model.parameters())).__name__}")

    def step(number: int) -> float:
        tokens = batch(number, rank)
        loss = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1], use_cache=False).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        return float(accelerator.reduce(loss.detach(), "mean")) if size > 1 else float(loss.detach())

    return step


def run_rank(case: str, rounds: int) -> None:
    """Take turns as one of the two processes."""
    import torch
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    zero = 3 if case == "zero3" else 0
    steps = {"nbllm": ours(zero), "accelerate": theirs(zero)}
    seconds = dict.fromkeys(steps, 0.0)
    for number in range(rounds + 2):
        for name, step in steps.items():
            dist.barrier()
            began = time.perf_counter()
            loss = step(number)
            dist.barrier()
            took = time.perf_counter() - began
            if number >= 2:  # after those that warm up
                seconds[name] += took
            if dist.get_rank() == 0:
                print(f"{case} round {number}: {name:10} {took:6.3f} s, loss {loss:.3f}", flush=True)
    if dist.get_rank() == 0:
        speed = {name: 2 * BATCH * LENGTH * rounds / each for name, each in seconds.items()}
        print(f"{case}: nbllm {speed['nbllm']:,.0f} tokens/s, accelerate {speed['accelerate']:,.0f}")
        print(f"{case}: {speed['nbllm'] / speed['accelerate']:.2f} times accelerate's speed", flush=True)
    dist.destroy_process_group()


def launch(case: str, rounds: int) -> None:
    """Start two processes of this file and wait for them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    own |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": "2"}
    if case == "zero3":
        own |= {"ACCELERATE_USE_FSDP": "true"}
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_data_parallel",
        "--case",
        case,
        "--rounds",
        str(rounds),
    ]
    processes = [
        subprocess.Popen(command, env={**os.environ, **own, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    for process in processes:
        process.wait()


def main() -> None:
    """Run both cases, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=("ddp", "zero3"))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options.case, options.rounds)
        return
    for case in (options.case,) if options.case else ("ddp", "zero3"):
        launch(case, options.rounds)


if __name__ == "__main__":
    main()
