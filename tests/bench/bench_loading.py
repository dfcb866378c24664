"""How long a cached model takes from the call to ready, and how much memory: `python -m tests.bench.bench_loading`.

SmolLM2-135M-Instruct out of its 4-bit GGUF file, beside transformers on the same file, each time in a new process, in
turn. Time with and without the import of the libraries; the file is in the system's cache. The peak (VmHWM) is what the
process needs at most beyond what it held when the libraries were imported, relative to the model's own size.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    path = MODELS[NAME].sources[-1].fetch()
    found = collections.defaultdict(list)
    for _ in range(options.rounds):
        for dtype in ("float32", "bfloat16"):
            for name, code in (("nbllm", OURS), ("transformers", THEIRS)):
                command = [sys.executable, "-c", code, str(path), dtype]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                found[dtype, name].append(json.loads(done.stdout))
    print(f"{NAME}, {os.path.getsize(path) / 1e6:.0f} MB of GGUF; best and median of {options.rounds}")
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
