"""How long a model takes from the call to ready, and how much memory: `python -m tests.bench.bench_loading`.

SmolLM2-135M-Instruct out of its 4-bit GGUF file, beside transformers on the same file, each time in a new process, in
turn. `--random llama-3.2-1b`: random weights of that shape instead, in bfloat16 and shards of 500 MB, written to a
temporary folder first; ready is who has read every weight once, for transformers maps files and reads nothing before
it is used. Time with and without the import of the libraries; the files are in the system's cache. The peak (VmHWM) is
what the process needs at most beyond what it held when the libraries were imported, relative to the model's own size.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import torch

from nbllm.models import make_config, save_model
from nbllm.models.network import build_without_weights
from nbllm.models.zoo.known import MODELS

NAME = "smollm2-135m-instruct"
AROUND = """
import time
began = time.perf_counter()
import json, sys
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
{imports}
imported, before = time.perf_counter(), peak()
{load}
ready = time.perf_counter()
size = sum(weight.nbytes for weight in model.parameters())
print(json.dumps([ready - began, ready - imported, (peak() - before) / size, size]))
"""
OURS = AROUND.format(
    imports="""
import torch, nbllm as nb, nbllm.models.gguf.reading, nbllm.models.gguf.tokenizer, nbllm.inference.recommended
import nbllm.models.zoo.fetching
from transformers import PreTrainedTokenizerFast
""",
    load='lm = nb.load("smollm2-135m-instruct", dtype=getattr(torch, sys.argv[2]))\nmodel = lm.model',
)
THEIRS = AROUND.format(
    imports="""
import os, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama
""",
    load="""
folder, file = os.path.split(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=getattr(torch, sys.argv[2]))
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
""",
)

TOUCH = """
for weight in model.parameters():
    weight.data.view(torch.int16).max()
"""
OURS_RANDOM = AROUND.format(
    imports="import torch, nbllm as nb\nfrom nbllm.models.loading import load_model",
    load="model = load_model(sys.argv[1])" + TOUCH,
)
THEIRS_RANDOM = AROUND.format(
    imports="""
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
""",
    load='model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")' + TOUCH,
)
SHARD = 500_000_000  # bytes


def write_random(preset: str, folder: str) -> None:
    """Write a checkpoint of random bfloat16 weights in shards."""
    model = build_without_weights(make_config(preset)).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.nn.Parameter(
            torch.empty(weight.shape, dtype=weight.dtype).normal_(0, 0.02, generator=generator)
        )
        for name, weight in model.named_parameters()
    }
    model.load_state_dict(state, assign=True)
    save_model(model, folder, max_shard_bytes=SHARD)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", metavar="PRESET", help="a shape to write with random weights")
    options = parser.parse_args()
    if options.random:
        with tempfile.TemporaryDirectory() as folder:
            write_random(options.random, folder)
            shards = [
                entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".safetensors")
            ]
            title = f"{options.random}, {sum(shards) / 1e6:,.0f} MB of bfloat16 in {len(shards)} shards"
            measure(folder, title, ("bfloat16",), (OURS_RANDOM, THEIRS_RANDOM), options.rounds)
        return
    path = MODELS[NAME].sources[-1].fetch()
    title = f"{NAME}, {os.path.getsize(path) / 1e6:.0f} MB of GGUF"
    measure(str(path), title, ("float32", "bfloat16"), (OURS, THEIRS), options.rounds)


def measure(path: str, title: str, dtypes: Sequence[str], codes: tuple[str, str], rounds: int) -> None:
    """Open what is at `path` in new processes, ours and transformers' in turn, and print what it takes."""
    found = collections.defaultdict(list)
    for _ in range(rounds):
        for dtype in dtypes:
            for name, code in zip(("nbllm", "transformers"), codes, strict=True):
                command = [sys.executable, "-c", code, path, dtype]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                found[dtype, name].append(json.loads(done.stdout))
    print(f"{title}; best and median of {rounds}")
    print(f"{'':24}{'ready, imports apart':>24}{'with imports':>20}{'peak / model':>16}{'model':>10}")
    for (dtype, name), rows in found.items():
        whole, load, peak = (sorted(column) for column in list(zip(*rows, strict=True))[:3])
        middle = len(rows) // 2
        print(
            f"{dtype:10}{name:14}{load[0]:12.2f} s {load[middle]:8.2f} s{whole[0]:10.2f} s {whole[middle]:6.2f} s"
            f"{peak[-1]:14.2f}x{rows[0][3] / 1e6:7.0f} MB"
        )


if __name__ == "__main__":
    main()
