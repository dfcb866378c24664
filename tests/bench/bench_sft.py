"""Supervised fine-tuning of a real model with LoRA, beside trl with peft: `python -m tests.bench.bench_sft --help`.

SmolLM2-135M-Instruct, rank 8 on query and value, the same conversations (notes to reminders, everyday questions, and
longer answers from the reference topics of Python), loss on answers, float32 on the CPU. trl pads a batch of
conversations to the longest; nbllm packs conversations into rows of about as many tokens, which do not see each other.
Both take a step in turn in one process; tokens are those of conversations, without padding. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nbllm as nb
from nbllm.core.allocator import kept_memory
from nbllm.data.sample_store import RowSource
from nbllm.distributed.layout import OneProcess
from nbllm.finetuning import prepare
from nbllm.finetuning.rows import rows_of
from nbllm.nn.compute.decisions import ComputeChoices, use_choices
from nbllm.objectives import OBJECTIVES
from nbllm.training.config import TrainConfig
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers import OPTIMIZERS
from nbllm.training.precision import DTYPES
from nbllm.training.run_choices import make_choices
from nbllm.training.step import Stepper
from nbllm.training.train_state import TrainState
from tests.bench.turns import take_turns

NAME, RANK, LENGTH = "smollm2-135m-instruct", 8, 256
EXAMPLES, ROWS = 6, 2  # of a batch; both are some 500 tokens
Step = Callable[[], int]


def conversations() -> list[dict[str, Any]]:
    """Return short and long ones, shuffled."""
    rows = [*rows_of("reminders"), *rows_of("everyday")]
    asked = [(f"{row['instruction']}\n\n{row['input']}".strip(), row["output"]) for row in rows]
    for document in nb.data.load("pydocs").select(range(24)):
        text = document["text"]
        asked += [
            (f"Explain: {text[at : at + 40]}", text[at : at + 600])
            for at in range(0, min(len(text), 6000), 1500)
        ]
    order = np.random.default_rng(0).permutation(len(asked))
    return [
        {
            "messages": [
                {"role": "user", "content": asked[n][0]},
                {"role": "assistant", "content": asked[n][1]},
            ]
        }
        for n in order
    ]


def ours(lm: nb.LM, rows: list[dict[str, Any]], precision: str) -> Step:
    """Return what takes a step, as a run's loop does, and returns how many tokens of conversations it had."""
    prepared = prepare(rows, lm.tokenizer, length=LENGTH)
    print(prepared)
    lm.attach(nb.LoRA(rank=RANK))
    trained = {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    config = TrainConfig(
        objective="sft",
        batch_size=ROWS,
        sequence_length=LENGTH,
        precision=precision,
        lr=1e-4,
        schedule="constant",
    )
    choices = make_choices(config, lm.config)["choices"]
    lm.model.attention_backend = choices["attention"]
    lm.model.train()
    optimizer = Optimizer(
        OneProcess(lm.model, dtype=DTYPES[choices["precision"]]), OPTIMIZERS[config.optimizer]
    )
    optimizer.freeze(set(optimizer.names) - trained)
    objective = OBJECTIVES["sft"].for_tokenizer(lm.tokenizer)
    source = RowSource(prepared.store, seed=0)
    stepper = Stepper(objective, optimizer, source, config, "cpu")
    state = TrainState(values=config.values)

    def step() -> int:
        nonlocal state
        with kept_memory(), use_choices(ComputeChoices.from_record(choices)):
            tokens = int((source.draw(state.position, ROWS)["examples"] >= 0).sum())
            state = stepper.step(state).state
        return tokens

    return step


def theirs(folder: Path, rows: list[dict[str, Any]], precision: str) -> Step:
    """The same for trl and peft, with trl's own data, collator, loss and step."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=EXAMPLES, use_cpu=True,
        bf16=precision == "bfloat16", gradient_checkpointing=False, max_length=LENGTH, report_to=[], learning_rate=1e-4,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()
    batches = iter(trainer.get_train_dataloader())

    def step() -> int:
        batch = next(batches)
        trainer.training_step(trainer.model, batch)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return int(batch["attention_mask"].sum())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = conversations()
    lm = nb.load(NAME)
    with tempfile.TemporaryDirectory() as folder:
        lm.save(f"{folder}/model")
        steps = {
            "nbllm": ours(lm, rows, options.precision),
            "trl + peft": theirs(Path(folder), rows, options.precision),
        }
        turns = take_turns(steps, options.rounds)
    for who in steps:
        print(f"{who:12} {turns.speed(who):8.0f} tokens/s")
    print(f"ratio {turns.speed('nbllm') / turns.speed('trl + peft'):.2f}")


if __name__ == "__main__":
    main()
