"""Best of n and rejection sampling: a model's answers that a reward likes best, to be used or to be learnt from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import progress
from nbllm.core.seeding import derive
from nbllm.finetuning.alignment.prompts import prepare_prompts, prompts_in
from nbllm.finetuning.alignment.rewards import name_of, reward_named
from nbllm.finetuning.alignment.rollouts import sample_answers

if TYPE_CHECKING:
    from datasets import Dataset

    from nbllm.lm import LM

_TOGETHER = 64  # answers between two moves of the progress bar


def best_of_n(  # noqa: PLR0913 (each is one thing, and most are rarely given)
    lm: LM,
    data: Any,
    *,
    reward: Any,
    n: int = 8,
    keep: int = 1,
    least: float | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Sample answers to prompts, and return the best of each.

    With `least`, answers below it are rejected, and so are prompts without another: what is left is data for
    `nb.finetune(lm, rows)`, rejection sampling. The best of n is at most log n - (n - 1) / n nats from the model.

    Args:
        lm: The model.
        data: Prompts, as for `nb.finetune(..., method="ppo")`: all texts, or all conversations.
        reward: As there: a function of prompt and answer, the name of one, or a reward model.
        n: Answers to each prompt.
        keep: How many of them, at most; equal ones count once.
        least: The least reward.
        max_new_tokens: Of an answer.
        temperature: Of sampling.
        seed: The answers depend on it alone.

    Returns:
        "prompt", "completion" and "reward", and the prompt's other fields; the best answer to a prompt first.

    Raises:
        UserError: A number is out of range, prompts are of both kinds, or the reward is none.
        DataError: There is no prompt, or no answer is left.
        RunError: The reward fails.

    Source: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3 (best of n); Touvron et al. 2023, arXiv:2307.09288,
        section 3.2.3 (rejection sampling).
    """
    if n < 1 or not 1 <= keep <= n:
        raise UserError(f"n must be at least 1, and keep from 1 to n; not {n!r} and {keep!r}.")
    score = reward_named(name_of(reward))
    network = lm.causal_network_for("generate")
    prepared = prepare_prompts(
        data,
        lm.tokenizer,
        end_tokens=lm.end_tokens,
        length=lm.config.max_positions,
        max_new_tokens=max_new_tokens,
    )
    sys.stdout.write(f"{prepared}\n")
    rows: list[dict[str, Any]] = []
    step = max(1, _TOGETHER // n)
    with progress("sampling answers", prepared.store.num_rows, "prompts") as bar:
        for first in range(0, prepared.store.num_rows, step):
            places = list(range(first, min(first + step, prepared.store.num_rows)))
            with lm.lock:
                answers = sample_answers(
                    network, lm.tokenizer, prompts_in(prepared.store.take(places)), samples=n,
                    max_new_tokens=max_new_tokens, temperature=temperature, seed=derive(seed, "best of n") % 2**31,
                )  # fmt: skip
            scores = score(answers).view(-1, n)
            for place in range(len(places)):
                rows += _best(answers, scores[place], place * n, keep, least)
            bar.update(len(places))
    return _as_data_set(rows, prepared.store.num_rows, least)


def _best(
    answers: Any, scores: torch.Tensor, first: int, keep: int, least: float | None
) -> list[dict[str, Any]]:
    """Return the best answers to one prompt, whose answers begin at `first`."""
    found: list[dict[str, Any]] = []
    for place in torch.argsort(scores, descending=True, stable=True).tolist():
        value, text = float(scores[place]), answers.texts[first + place]
        if len(found) == keep or (least is not None and value < least):
            break
        prompt = answers.prompts[first + place]
        is_text = isinstance(prompt.content, str)
        completion: Any = text if is_text else [{"role": "assistant", "content": text}]
        row = {**prompt.fields, "prompt": prompt.content, "completion": completion, "reward": value}
        if text.strip() and all(row["completion"] != other["completion"] for other in found):
            found.append(row)
    return found


def _as_data_set(rows: list[dict[str, Any]], num_prompts: int, least: float | None) -> Dataset:
    from datasets import Dataset

    if not rows:
        raise DataError(
            "No answer is left.",
            hint=f"None has a reward of {least}: lower least, or raise n." if least else None,
        )
    if len({type(row["prompt"]) for row in rows}) > 1:
        raise UserError("Some prompts are texts and some conversations.", hint="Call it for each kind.")
    answered = len({repr(row["prompt"]) for row in rows})
    sys.stdout.write(f"{len(rows):,} answers to {answered:,} of {num_prompts:,} prompts are left.\n")
    made: Dataset = Dataset.from_list(rows)
    return made
