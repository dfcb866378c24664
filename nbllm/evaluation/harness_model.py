"""Our models in EleutherAI's evaluation harness, so that its whole catalogue of tasks runs on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.evaluation.answering import answer
from nbllm.evaluation.requests import Generate, Likelihood
from nbllm.inference.config import SamplingConfig

try:
    from lm_eval.api.model import LM as Base
except ImportError as error:  # an extra
    raise UserError(
        "lm_eval is not installed.", hint="pip install 'nbllm[harness]', or pip install lm_eval."
    ) from error

if TYPE_CHECKING:
    from nbllm.lm import LM

_MAX_NEW_TOKENS = 256  # theirs, where a task says nothing


class HarnessModel(Base):
    """A model as `lm_eval` takes it: `lm_eval.simple_evaluate(model=HarnessModel(lm), tasks=["hellaswag"])`.

    A prompt that is longer than the context loses its beginning, as there.

    Args:
        lm: The model.
        batch_tokens: About how many tokens one forward pass takes.
    """

    def __init__(self, lm: LM, *, batch_tokens: int = 4096) -> None:
        super().__init__()
        self._lm, self._batch_tokens = lm, batch_tokens

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood, and whether the model would write it."""
        found: list[Any] = self._answer([Likelihood(*request.args) for request in requests])
        return [(each.log_probability, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-likelihood of each text. Windows of a long one overlap by half, where theirs are apart."""
        return [score.log_probability for score in self._lm.score([request.args[0] for request in requests])]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the text that continues each prompt, up to the first of the strings that end it."""
        return [str(each) for each in self._answer([_generation(*request.args) for request in requests])]

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        return answer(self._lm, requests, batch_tokens=self._batch_tokens, truncation="left")


def _generation(prompt: str, settings: dict[str, Any]) -> Generate:
    until = settings.get("until") or ()
    temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
    sampling = SamplingConfig(
        temperature=temperature,
        top_p=float(settings.get("top_p", 1.0)),
        max_new_tokens=int(settings.get("max_gen_toks", _MAX_NEW_TOKENS)),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
    return Generate(prompt, sampling)
