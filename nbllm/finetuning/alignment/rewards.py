"""Rewards: what an answer to a prompt is worth, by a function or by a reward model."""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.cache import cache_folder, make_folder
from nbllm.core.errors import RunError, UserError
from nbllm.core.io import expand_user
from nbllm.core.registry import Registry
from nbllm.lm import LM
from nbllm.models.network import check_can
from nbllm.nn.compiled import state_by_name
from nbllm.opening import load
from nbllm.runs.recorded import RecordedRun

if TYPE_CHECKING:
    from nbllm.finetuning.alignment.rollouts import Answers

RewardFunction: TypeAlias = Callable[..., float]
Reward: TypeAlias = "Callable[[Answers], Float[Tensor, ' sequence']]"

REWARDS: Registry[RewardFunction] = Registry("reward")
"""Reward functions by name: of a prompt (a text, or messages) and an answer, and of the fields of the prompt's example
that further parameters name. They can be checked by anybody who has the same examples, and so are known in every
process; a function that is given to `nb.finetune` is known in its kernel alone."""

_MODEL = "model:"  # before the folder of a reward model
_of_this_kernel: dict[str, RewardFunction] = {}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@REWARDS.register("exact_match")
def exact_match(prompt: Any, text: str, answer: Any) -> float:
    """Return 1 where an answer is the right one but for space around it, else 0.

    Args:
        prompt: Not looked at.
        text: What was answered.
        answer: The field `answer` of the example.
    """
    return float(text.strip() == str(answer).strip())


@REWARDS.register("last_number")
def last_number(prompt: Any, text: str, answer: Any) -> float:
    """Return 1 where the last number of an answer is the last one of the right answer, as in GSM8K, else 0.

    Args:
        prompt: Not looked at.
        text: What was answered.
        answer: The field `answer` of the example: a number, or a text that ends with one.
    """
    found, wanted = (_NUMBER.findall(str(each)) for each in (text, answer))
    if not found or not wanted:
        return 0.0
    one, other = (float(each[-1].replace(",", "")) for each in (found, wanted))
    return float(math.isclose(one, other, rel_tol=1e-9))


def register_reward(function: RewardFunction) -> RewardFunction:
    """Make a reward function known in this kernel, so that a run that was started with it elsewhere can go on.

    Raises:
        UserError: It is no function of a prompt and an answer.
    """
    name_of(function)
    return function


def name_of(reward: Any) -> str:
    """Return the name by which a run's record holds a reward, which is known in this kernel from now on.

    Raises:
        UserError: It is no reward.
    """
    if isinstance(reward, LM):
        return f"{_MODEL}{_kept(reward)}"
    if isinstance(reward, (str, Path, RecordedRun)) and reward not in REWARDS:
        path = expand_user(reward.path if isinstance(reward, RecordedRun) else reward)
        if not path.is_dir():
            REWARDS[str(path)]  # raises, with the nearest name
        return f"{_MODEL}{path.resolve()}"
    if isinstance(reward, str):
        return reward
    if callable(reward) and not isinstance(reward, type):
        _check_parameters(reward)
        named = reward if hasattr(reward, "__qualname__") else type(reward)
        name = f"{named.__module__}.{named.__qualname__}"
        _of_this_kernel[name] = reward
        return name
    raise UserError(
        f"The reward must be a function of a prompt and an answer, or a reward model; not {type(reward).__name__}.",
        hint="def reward(prompt, answer): return float('please' in answer)",
    )


def _kept(lm: LM) -> Path:
    """Return the folder in the cache that holds a reward model, so that its run goes on in any process."""
    check_can(lm.model, "reward")
    digest = hashlib.blake2b(repr(lm.config).encode(), digest_size=16)
    for name, tensor in state_by_name(lm.model).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    parent = cache_folder() / "rewards"
    make_folder(parent)
    path = parent / digest.hexdigest()
    if not path.is_dir():
        with lm.lock:
            plain = lm.copy()  # with its adapters merged, as the digest has them
            if plain.adapters:
                plain.adapter_stack.merge(*plain.adapters)
            plain.save(path)
    return path


def _check_parameters(function: RewardFunction) -> None:
    try:
        inspect.signature(function).bind(None, None, **{name: None for name in _fields_of(function)})
    except TypeError:
        raise UserError(
            "A reward function is called with a prompt and an answer; this one cannot be.",
            hint="def reward(prompt, answer): ...",
        ) from None
    except ValueError:  # a function in C has no signature
        return


def reward_named(name: str) -> Reward:
    """Return the reward that a run's record names, as a function of answers.

    Raises:
        RunError: It is a function that this kernel does not know.
    """
    if name.startswith(_MODEL):
        return ModelReward(load(name.removeprefix(_MODEL)))
    if name in _of_this_kernel:
        return FunctionReward(name, _of_this_kernel[name])
    if name in REWARDS:
        return FunctionReward(name, REWARDS[name])
    raise RunError(
        f"This run's reward {name!r} is a function that this process does not know.",
        hint="Define it again and call nb.finetuning.register_reward(function), then resume in this kernel.",
    )


class FunctionReward:
    """The rewards of answers by a function.

    Args:
        name: The function's, for messages.
        function: The function.
    """

    def __init__(self, name: str, function: RewardFunction) -> None:
        self.name, self.function = name, function
        self._fields = _fields_of(function)

    def __call__(self, answers: Answers) -> Float[Tensor, " sequence"]:
        """Return the reward of each answer.

        Raises:
            RunError: The function fails, or returns no finite number.
        """
        found = []
        for prompt, text in zip(answers.prompts, answers.texts, strict=True):
            given = {name: prompt.fields[name] for name in self._fields if name in prompt.fields}
            try:
                value = float(self.function(prompt.content, text, **given))
            except Exception as error:
                raise RunError(
                    f"The reward {self.name!r} failed: {type(error).__name__}: {error}",
                    where=f"the answer {text[:80]!r}",
                ) from error
            if not math.isfinite(value):
                raise RunError(f"The reward {self.name!r} is {value}.", where=f"the answer {text[:80]!r}")
            found.append(value)
        return torch.tensor(found, dtype=torch.float32)


class ModelReward:
    """The rewards of answers by a reward model, with its own tokenizer and chat template.

    Args:
        lm: The model, which has a score head.

    Raises:
        UserError: It has none.
    """

    def __init__(self, lm: LM) -> None:
        check_can(lm.model, "reward")
        self.lm = lm

    def __call__(self, answers: Answers) -> Float[Tensor, " sequence"]:
        """Return the score of each answer after its prompt, as one text or one conversation.

        Raises:
            RunError: A score is not finite.
        """
        whole: list[Any] = [
            prompt.content + text
            if isinstance(prompt.content, str)
            else [*prompt.content, {"role": "assistant", "content": text}]
            for prompt, text in zip(answers.prompts, answers.texts, strict=True)
        ]
        scores = torch.tensor(self.lm.reward(whole), dtype=torch.float32)
        if not bool(scores.isfinite().all()):
            raise RunError("A score of the reward model is not finite.")
        return scores


def _fields_of(function: RewardFunction) -> tuple[str, ...]:
    """Return the parameters after prompt and answer, which can be given by name."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, each in list(parameters.items())[2:] if each.kind in by_name)
