"""A decoder, an encoder and an encoder-decoder of one shape beside transformers': forward pass and training step.

python tests/bench/bench_architectures.py [--rounds 5] [--only encoder] [--breakdown]

GPT-2, BERT and T5 with 6 layers (T5: 6 and 6), 384 wide, 6 heads, 8,192 tokens; 8 sequences of 128 (T5 reads and writes
as many), without dropout, each with the loss that it is trained with. All in turn in one process. transformers runs as
it comes, and once more within `kept_memory`, which our trainer uses. Compared are the best times: other work on the
machine only ever adds to them. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from nbllm.core.allocator import kept_memory
from nbllm.models import build, make_config
from nbllm.nn.attention_backends import choose
from nbllm.objectives import CausalLM, MaskedLM, SpanCorruption

LAYERS, WIDTH, HEADS, VOCABULARY, BATCH, LENGTH = 6, 384, 6, 8192, 8, 128
SHAPE = {"vocab_size": VOCABULARY, "num_layers": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS}
KINDS = ("decoder", "encoder", "encoder-decoder")
Contestant = tuple[nn.Module, Callable[[], Tensor]]
Clock = Callable[[], float]


def tokens(seed: int, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(5, VOCABULARY, (BATCH, length))


def decoder(dtype: torch.dtype) -> tuple[Contestant, Contestant]:
    objective = CausalLM()
    batch = objective.batch(tokens(0, LENGTH + 1), np.random.default_rng(0))
    own = build(make_config("gpt2", **SHAPE, max_positions=LENGTH)).to(dtype)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).to(dtype).train()

    def their_loss() -> Tensor:
        # Its own loss shifts the labels; here they are shifted already, as many tokens as ours predicts.
        logits = theirs(batch["inputs"]).logits.float().flatten(0, 1)
        return nn.functional.cross_entropy(logits, batch["targets"].flatten())

    return (own, lambda: mean(objective.loss(own, batch))), (theirs, their_loss)


def encoder(dtype: torch.dtype) -> tuple[Contestant, Contestant]:
    objective = MaskedLM(4, np.arange(VOCABULARY) < 5)
    batch = objective.batch(tokens(0, LENGTH), np.random.default_rng(0))
    own = build(make_config("bert", **SHAPE, max_positions=LENGTH)).to(dtype)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = transformers.BertForMaskedLM(config).to(dtype).train()
    return (
        (own, lambda: mean(objective.loss(own, batch))),
        (theirs, lambda: theirs(batch["inputs"], labels=batch["targets"]).loss),
    )


def encoder_decoder(dtype: torch.dtype) -> tuple[Contestant, Contestant]:
    source, written = torch.from_numpy(tokens(0, LENGTH)), torch.from_numpy(tokens(1, LENGTH + 1))
    batch = {
        "inputs": source,
        "decoder_inputs": written[:, :-1].contiguous(),
        "targets": written[:, 1:].contiguous(),
    }
    own = build(make_config("t5", **SHAPE, max_positions=LENGTH)).to(dtype)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, num_layers=LAYERS, num_heads=HEADS,
        dropout_rate=0.0, use_cache=False,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).to(dtype).train()
    return (
        (own, lambda: mean(SpanCorruption(0, 1).loss(own, batch))),
        (
            theirs,
            lambda: theirs(source, decoder_input_ids=batch["decoder_inputs"], labels=batch["targets"]).loss,
        ),
    )


def mean(loss: tuple[Tensor, int]) -> Tensor:
    return loss[0] / loss[1]


def chosen_attention(dtype: torch.dtype) -> str:
    """Return the backend that a run of this shape records and trains with."""
    heads = torch.zeros(BATCH, HEADS, LENGTH, WIDTH // HEADS, dtype=dtype, requires_grad=True)
    return choose(heads, heads, causal=True, mask=None)


def measure(contestant: Contestant, clock: Clock, *, trains: bool) -> float:
    """Return the seconds of one training step without the optimizer, or of one forward pass with its loss."""
    model, loss = contestant
    start = clock()
    if trains:
        loss().backward()
        model.zero_grad(set_to_none=True)
    else:
        with torch.inference_mode():
            loss()
    return clock() - start


def compare(kind: str, dtype: torch.dtype, rounds: int, clock: Clock) -> None:
    """Measure all in turn; print the best times and their ratios."""
    own, theirs = {"decoder": decoder, "encoder": encoder, "encoder-decoder": encoder_decoder}[kind](dtype)
    turns = {
        "nbllm": (own, kept_memory),
        "transformers": (theirs, contextlib.nullcontext),
        "kept": (theirs, kept_memory),
    }
    for name, trains in (("forward and loss", False), ("training step", True)):
        own[0].attention_backend = chosen_attention(dtype) if trains else "auto"
        best = dict.fromkeys(turns, float("inf"))
        for turn in range(rounds + 1):
            for each, (contestant, memory) in turns.items():
                with memory():
                    measure(contestant, clock, trains=trains)  # its memory and caches are warm again
                    taken = measure(contestant, clock, trains=trains)
                if turn:
                    best[each] = min(best[each], taken)
        plain, kept = (best[each] / best["nbllm"] for each in ("transformers", "kept"))
        print(
            f"{kind:16} {str(dtype)[6:]:9} {name:17} {1000 * best['nbllm']:6.0f} ms, transformers "
            f"{1000 * best['transformers']:6.0f} ms ({plain:.2f}x), memory kept {1000 * best['kept']:6.0f} ms "
            f"({kept:.2f}x)",
            flush=True,
        )


def breakdown(kind: str, dtype: torch.dtype) -> None:
    """Print the costliest operations of a training step of each."""
    for contestant in {"decoder": decoder, "encoder": encoder, "encoder-decoder": encoder_decoder}[kind](
        dtype
    ):
        with kept_memory():
            measure(contestant, time.perf_counter, trains=True)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(3):
                    measure(contestant, time.perf_counter, trains=True)
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--only", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure this process's CPU time; on a busy machine, with --threads 1",
    )
    parser.add_argument("--breakdown", action="store_true", help="profile a step of each instead")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    for precision in options.precision:
        for kind in options.only:
            dtype = getattr(torch, precision)
            if options.breakdown:
                breakdown(kind, dtype)
            else:
                clock = time.process_time if options.cpu_time else time.perf_counter
                compare(kind, dtype, options.rounds, clock)


if __name__ == "__main__":
    main()
