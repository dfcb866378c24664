"""Answers that a policy samples while it is trained, and what is kept of them in the run's directory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nbllm.core.errors import RunError
from nbllm.core.io import is_link, read_regular, write_atomic
from nbllm.finetuning.alignment.prompts import Prompt
from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import decode
from nbllm.inference.sequence import make_sequences

if TYPE_CHECKING:
    from nbllm.models.network import CausalNetwork

FOLDER = "rollouts"  # of a run
TOGETHER = 64  # answers that are decoded in one batch
_MAX_FILE = 1 << 28  # bytes


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a policy answered.

    Attributes:
        prompts: The prompt of each answer; those to one prompt follow each other.
        prompt_tokens: Its tokens.
        tokens: Of each answer, with the end token where it ended with one.
        ended: Whether it did; else it was cut at its longest.
        texts: Of the answers, without control tokens.
    """

    prompts: list[Prompt]
    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    ended: list[bool]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.tokens)

    def to_batch(self, device: torch.device | str) -> dict[str, Tensor]:
        """Return what an objective computes with.

        Returns:
            "inputs": (sequence, position) prompt and answer but for its last token, padded at the end; "starts":
            (sequence,) where answers begin; "answers": (sequence, token) their tokens; "mask": (sequence, token)
            where these are no padding.
        """
        whole = [
            [*prompt, *answer][:-1] for prompt, answer in zip(self.prompt_tokens, self.tokens, strict=True)
        ]
        answers, mask = _padded(self.tokens)
        made = {
            "inputs": _padded(whole)[0],
            "starts": torch.tensor([len(prompt) for prompt in self.prompt_tokens]),
            "answers": answers,
            "mask": mask,
        }
        return {name: tensor.to(device) for name, tensor in made.items()}


def sample_answers(
    network: CausalNetwork,
    tokenizer: Any,
    prompts: Sequence[tuple[Prompt, list[int], tuple[int, ...]]],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Answers:
    """Sample answers with the network as it is, from its own distribution at the temperature: nothing is cut off it.

    Args:
        network: The policy.
        tokenizer: Its tokenizer, for the texts.
        prompts: Each with its tokens and the tokens that end an answer.
        samples: Answers to each.
        max_new_tokens: Of an answer, with its end token.
        temperature: Divides the logits; training does the same.
        seed: The answers depend on it and the weights alone.

    Raises:
        UserError: The network's output is not finite.
    """
    repeated = [each for each in prompts for _ in range(samples)]
    config = SamplingConfig(
        temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, batch_size=TOGETHER
    )
    sequences = make_sequences([tokens for _, tokens, _ in repeated], config, eos_id=None)
    for sequence, (_, _, ends) in zip(sequences, repeated, strict=True):
        sequence.end_ids = frozenset(ends)
    decode(network, sequences, config)
    last = [[] if sequence.ended_by is None else [sequence.ended_by] for sequence in sequences]
    return Answers(
        prompts=[prompt for prompt, _, _ in repeated],
        prompt_tokens=[tokens for _, tokens, _ in repeated],
        tokens=[[*sequence.tokens, *end] for sequence, end in zip(sequences, last, strict=True)],
        ended=[bool(end) for end in last],
        texts=[
            str(
                tokenizer.decode(
                    sequence.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )
            for sequence in sequences
        ],
    )


def write_rollout(run: Path, step: int, answers: Answers, columns: dict[str, Tensor]) -> None:
    """Keep the answers of a step in the run's directory, in place of those of a step that a rewind undid.

    Args:
        run: The run's directory.
        step: The step that they train.
        answers: The answers.
        columns: What is known of each, such as "reward", (sequence,).

    Raises:
        RunError: The folder is a link, or cannot be written.
    """
    folder = run / FOLDER
    values = {name: tensor.tolist() for name, tensor in columns.items()}
    lines = []
    for place, prompt in enumerate(answers.prompts):
        row = {
            "prompt": prompt.content,
            **({"fields": dict(prompt.fields)} if prompt.fields else {}),
            "answer": answers.texts[place],
            "tokens": answers.tokens[place],
            "ended": answers.ended[place],
            **{name: column[place] for name, column in values.items()},
        }
        lines.append(json.dumps(row))
    try:
        folder.mkdir(exist_ok=True)
        if is_link(folder):
            raise RunError("The folder of rollouts is a link, and a run holds no links.", where=folder)
        write_atomic(folder / _name(step), "\n".join(lines) + "\n")
    except OSError as error:
        raise RunError(
            f"The answers of this step cannot be kept: {error.strerror or error}.", where=folder
        ) from error


def read_rollout(run: Path, step: int) -> list[dict[str, Any]]:
    """Return what was kept of a step: for each answer prompt, answer, tokens, reward and what else was known.

    Raises:
        RunError: There is nothing of this step, or it is damaged.
    """
    path = run / FOLDER / _name(step)
    try:
        if is_link(path.parent):
            raise RunError("The folder of rollouts is a link, and a run holds no links.", where=path.parent)
        lines = read_regular(path, _MAX_FILE, follow=False).splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, RunError):
            raise
        there = sorted(
            int(each.stem[5:]) for each in path.parent.glob("step-*.jsonl") if each.stem[5:].isdigit()
        )
        held = f"There are those of the steps {there[0]} to {there[-1]}." if there else "The run has none."
        raise RunError(f"The answers of step {step} cannot be read.", where=path, hint=held) from error
    return [row for row in rows if isinstance(row, dict)]


def _name(step: int) -> str:
    return f"step-{step:08d}.jsonl"


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    lengths = torch.tensor([len(row) for row in rows])
    longest = max(1, int(lengths.max()))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return tokens, torch.arange(longest) < lengths[:, None]
