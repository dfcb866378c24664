"""A step of GRPO on a real model, rollout and update, beside trl: `python -m tests.bench.bench_rl --help`.

SmolLM2-135M-Instruct, the same prompts, as many answers of at most as many tokens, a reward function, a divergence from
the reference in the loss, float32 on the CPU; with LoRA of rank 8 on query and value, or all parameters. Both take a
step in turn in one process. Answers differ, and with them their lengths, so tokens of answers a second are compared,
too. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import nbllm as nb
from nbllm.core.allocator import kept_memory
from nbllm.data.sample_store import RowSource
from nbllm.distributed.layout import OneProcess
from nbllm.finetuning import METHODS
from nbllm.finetuning.alignment.rollout_stepper import RolloutStepper
from nbllm.nn.compute.decisions import ComputeChoices, use_choices
from nbllm.training.config import TrainConfig
from nbllm.training.objective import make_objective
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers import OPTIMIZERS
from nbllm.training.precision import DTYPES
from nbllm.training.run_choices import make_choices
from nbllm.training.train_state import TrainState
from tests.bench.turns import take_turns

NAME, RANK = "smollm2-135m-instruct", 8
PROMPTS, SAMPLES, LONGEST = 2, 4, 48
BETA = 0.05
QUESTIONS = [
    "Name three colours.", "What is a list in Python?", "Why is the sky blue?", "Write a line about the sea.",
    "How many days has a week?", "What is a function?", "Say hello in French.", "Explain what a loop does.",
]  # fmt: skip
Step = Callable[[], int]


def reward(prompt: object, answer: str) -> float:
    """Return the share of vowels: something that the model can learn, and that costs nothing to compute."""
    return sum(letter in "aeiou" for letter in answer) / max(1, len(answer))


def ours(lm: nb.LM, *, full: bool) -> Step:
    """Return what takes a step, as a run's loop does, and returns how many tokens of answers it had."""
    config = TrainConfig.from_dict(
        {
            "objective": "grpo", "prompts": PROMPTS, "samples": SAMPLES, "max_new_tokens": LONGEST, "lr": 1e-5,
            "kl_coefficient": BETA, "sequence_length": 256, "batch_size": 8, "precision": "float32",
            "schedule": "constant", **METHODS["grpo"](reward=reward).options(),
        }
    )  # fmt: skip
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prepared = METHODS["grpo"](reward=reward).prepare(chats, lm, config)
    if not full:
        lm.attach(nb.LoRA(rank=RANK))
    trained = {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    choices = make_choices(config, lm.config)["choices"]
    lm.model.attention_backend = choices["attention"]
    optimizer = Optimizer(
        OneProcess(lm.model, dtype=DTYPES[choices["precision"]]), OPTIMIZERS[config.optimizer]
    )
    optimizer.freeze(set(optimizer.names) - trained)
    objective = make_objective(config, lm.tokenizer)
    objective.begin_with(lm.model)
    stepper = RolloutStepper(objective, optimizer, RowSource(prepared.store), config, "cpu")
    stepper.lm = lm
    state = TrainState(values=config.values)

    def step() -> int:
        nonlocal state
        before = state.tokens
        with kept_memory(), use_choices(ComputeChoices.from_record(choices)):
            state = stepper.step(state).state
        return state.tokens - before

    return step


def theirs(folder: Path, *, full: bool) -> Step:
    """The same for trl and peft, with trl's own generation, scores, loss and step."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=PROMPTS * SAMPLES, num_generations=SAMPLES,
        max_completion_length=LONGEST, beta=BETA, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to=[], learning_rate=1e-5, disable_tqdm=True, loss_type="grpo", max_steps=1000,
        model_init_kwargs={"dtype": torch.float32},
    )  # fmt: skip
    counted = [0]

    def rewards(
        completions: list[list[dict[str, str]]], completion_ids: list[list[int]], **_: object
    ) -> list[float]:
        counted[0] = sum(map(len, completion_ids))
        return [reward(None, each[0]["content"]) for each in completions]

    trainer = GRPOTrainer(
        model=str(folder / "model"),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
        ),
        reward_funcs=rewards,
        peft_config=None
        if full
        else LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()

    def batches():
        while True:
            yield from trainer.get_train_dataloader()

    rows = batches()

    def step() -> int:
        trainer.model.train()
        trainer.training_step(trainer.model, next(rows), None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return counted[0]

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--full", action="store_true", help="train all parameters")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lm = nb.load(NAME)
    with tempfile.TemporaryDirectory() as folder:
        lm.save(f"{folder}/model")
        steps = {"nbllm": ours(lm, full=options.full), "trl": theirs(Path(folder), full=options.full)}
        turns = take_turns(steps, options.rounds)
    for name in steps:
        print(
            f"{name}: {turns.seconds[name] / options.rounds:.2f} s a step, "
            f"{turns.speed(name):.1f} tokens of answers/s"
        )
    print(
        f"steps: {turns.seconds['trl'] / turns.seconds['nbllm']:.2f}x, "
        f"tokens: {turns.speed('nbllm') / turns.speed('trl'):.2f}x"
    )


if __name__ == "__main__":
    main()
