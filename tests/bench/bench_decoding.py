"""How fast a real model answers, beside transformers and llama.cpp: `python -m tests.bench.bench_decoding --help`.

SmolLM2-135M-Instruct, one sequence, greedy: a prompt of 27 tokens continued by 128, and a prompt of 600 tokens read.
transformers has the same weights in the same precision, with and without draft tokens from prompt lookup; llama.cpp,
where `llama-cpp-python` is installed, has its own 4-bit file, a quarter to an eighth of the memory to read for each
token, and so is only shown beside. Without draft tokens all weights are read for each token, and the share of the
memory's measured rate says how near that is to what the machine can do. All run in turn in one process, and the best
round of each counts: other work on the machine only ever adds time. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

import nbllm as nb
from nbllm.inference.config import SamplingConfig
from nbllm.inference.drafters.base import MAX_DRAFT_TOKENS
from nbllm.inference.engine import generate_ids
from nbllm.inference.execution import Execution
from nbllm.models.zoo.fetching import locate

NAME, PROMPT, NEW, LONG = "smollm2-135m-instruct", 27, 128, 600
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Answers with its tokens to a prompt's, of which it makes `count`.
Answer = Callable[[list[int], int], list[int]]


def ours(lm: nb.LM, execution: Execution) -> Answer:
    def answer(prompt: list[int], count: int) -> list[int]:
        config = SamplingConfig(temperature=0, max_new_tokens=count)
        return generate_ids(lm.model, [prompt], config, eos_id=None, execution=execution)[0]

    return answer


def by_transformers(model: Any, **how: Any) -> Answer:
    model.generation_config.eos_token_id = None

    def answer(prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            **how,
        )
        return made[0, len(prompt) :].tolist()

    return answer


def by_llama_cpp(path: str) -> Answer | None:
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    model = Llama(path, n_ctx=1024, n_threads=torch.get_num_threads(), n_batch=512, verbose=False)

    def answer(prompt: list[int], count: int) -> list[int]:
        model.reset()
        model.eval(prompt)
        made = [int(model.sample(temp=0))]
        while len(made) < count:
            model.eval(made[-1:])
            made.append(int(model.sample(temp=0)))
        return made

    return answer


def read_rate(num_bytes: int) -> float:
    """Return the rate at which so much memory is read, in GB/s."""
    numbers = torch.ones(num_bytes // 4)
    numbers.sum()
    began = time.perf_counter()
    numbers.sum()
    return num_bytes / 1e9 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    dtype = PRECISIONS[options.precision]
    lm = nb.load(NAME, dtype=dtype)
    num_bytes = sum(weight.nbytes for weight in lm.model.parameters())
    text = "\n\n".join(document["text"] for document in nb.data.load("pydocs").select(range(8)))
    ids = lm.tokenizer(text, verbose=False)["input_ids"][:LONG]
    assert len(ids) == LONG
    with tempfile.TemporaryDirectory() as folder:
        lm.save(f"{folder}/model")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=dtype).eval()
        answers: dict[str, Answer | None] = {
            "nbllm": ours(lm, Execution()),
            "nbllm, no drafts": ours(lm, Execution(drafter=None)),
            "transformers": by_transformers(theirs),
            "transformers, drafts": by_transformers(theirs, prompt_lookup_num_tokens=MAX_DRAFT_TOKENS),
            "llama.cpp, 4 bits": by_llama_cpp(str(locate(NAME))),
        }
    contestants = {name: answer for name, answer in answers.items() if answer is not None}
    made = {name: answer(ids[:PROMPT], NEW) for name, answer in contestants.items()}
    seconds: dict[Any, list[float]] = collections.defaultdict(list)
    rates = []
    for _ in range(options.rounds):
        rates.append(read_rate(num_bytes))
        for name, answer in contestants.items():
            for what, length, count in (("answer", PROMPT, NEW), ("begin", PROMPT, 1), ("prompt", LONG, 1)):
                began = time.perf_counter()
                answer(ids[:length], count)
                seconds[name, what].append(time.perf_counter() - began)
    best = {key: min(values) for key, values in seconds.items()}
    threads = torch.get_num_threads()
    print(f"{NAME} in {options.precision}, {num_bytes / 1e6:.0f} MB, {threads} threads")
    print(f"memory is read at {max(rates):.1f} GB/s (from {min(rates):.1f})")
    print(f"{'':22}{'27 + 128 tokens':>18}{'of memory':>11}{'a token alone':>15}{'prompt of 600':>15}")
    for name in contestants:
        token = (best[name, "answer"] - best[name, "begin"]) / (NEW - 1)
        share = (
            f"{num_bytes / 1e9 / token / max(rates):.0%}"
            if name in ("nbllm, no drafts", "transformers")
            else ""
        )
        print(
            f"{name:22}{NEW / best[name, 'answer']:14.1f} t/s{share:>11}{1000 * token:12.1f} ms"
            f"{LONG / best[name, 'prompt']:11.0f} t/s"
        )
    for name in list(contestants)[1:]:
        answer, prompt = (best[name, what] / best["nbllm", what] for what in ("answer", "prompt"))
        same = "the same tokens" if made[name] == made["nbllm"] else "other tokens"
        print(f"nbllm / {name}: answer {answer:.2f}x, prompt {prompt:.2f}x; {same}")


if __name__ == "__main__":
    main()
