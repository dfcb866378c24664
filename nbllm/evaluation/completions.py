"""The requests of OpenAI's API that an evaluation sends: to continue a prompt, and to score the tokens of a text."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError, listed
from nbllm.evaluation.endpoint import Endpoint, EndpointError
from nbllm.evaluation.requests import ContinuationScore, Generate, Likelihood

if TYPE_CHECKING:
    from nbllm.inference.config import SamplingConfig

_PATHS = {"completions": "/completions", "chat": "/chat/completions"}
_MOST_STOPS = 4  # that OpenAI accepts; the text is cut at the others here
_SENT = frozenset({"temperature", "top_p", "max_new_tokens", "stop", "seed"})  # settings that the API has
_WITHOUT_EFFECT = frozenset({"overflow", "batch_size"})  # on the text
_ROUNDING = 1e-6


class NoLikelihoods(EndpointError):
    """The endpoint answers a request for log-probabilities without them."""


@dataclasses.dataclass(frozen=True)
class Echo:
    """A text's tokens as the endpoint sees them, each with its log-probability and that of the likeliest one."""

    tokens: tuple[str, ...]
    values: tuple[float | None, ...]
    best: tuple[float | None, ...]


class Completions:
    """One model of an endpoint. What the server answers is checked before it is used.

    Args:
        endpoint: Where it is.
        model: Its name there.
    """

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint, self._model = endpoint, model

    def write(
        self, api: str, request: Generate, seed: int, stop: threading.Event | None = None
    ) -> tuple[str, object]:
        """Return what the model writes, and why the server says it ended."""
        sampling, prompt = request.sampling, str(request.prompt)
        body: dict[str, Any] = {"model": self._model, "max_tokens": sampling.max_new_tokens}
        body["temperature"] = sampling.temperature
        if sampling.temperature > 0:
            body |= {"top_p": sampling.top_p, "seed": seed}
        if sampling.stop:
            body["stop"] = list(sampling.stop[:_MOST_STOPS])
        if api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        choice = self._first_choice(_PATHS[api], body, stop)
        message = choice.get("message") if api == "chat" else choice
        text = message.get("content" if api == "chat" else "text") if isinstance(message, dict) else None
        if api == "chat" and text is None and isinstance(message, dict):
            text = ""  # a message may have no text, as where a filter took it
        if not isinstance(text, str):
            raise self._malformed("no text in its first choice")
        return text.encode(errors="replace").decode(), choice.get("finish_reason")  # half characters as "?"

    def echo(self, text: str, stop: threading.Event | None = None) -> Echo:
        """Return the tokens of a text with their log-probabilities; of "", none."""
        if not text:
            return Echo((), (), ())
        body = {
            "model": self._model,
            "prompt": text,
            "max_tokens": 0,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }
        choice = self._first_choice(_PATHS["completions"], body, stop)
        found = choice.get("logprobs")
        if not isinstance(found, dict):
            raise NoLikelihoods("The server's answer has no log-probabilities.", where=self._endpoint.url)
        tokens, values, tops = (found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
        lists = [each for each in (tokens, values, tops) if isinstance(each, list)]
        if (
            len(lists) < 3
            or len({len(each) for each in lists}) > 1
            or not all(isinstance(t, str) for t in lists[0])
        ):
            raise NoLikelihoods(
                "The server's answer has not one token, log-probability and likeliest token for each place.",
                where=self._endpoint.url,
            )
        if choice.get("text") != text or lists[1][:1] != [None]:
            # as of a server that ignores echo, whose log-probabilities are those of what it writes
            raise NoLikelihoods(
                "The server does not return the text that it was given, and no more.",
                where=self._endpoint.url,
            )
        best = [self._largest(top) for top in lists[2]]
        return Echo(tuple(lists[0]), tuple(map(self._log_probability, lists[1])), tuple(best))

    def score(self, request: Likelihood, whole: Echo, alone: Echo) -> ContinuationScore:
        """Return how likely a continuation is, from the tokens of the whole text and those of its context alone."""
        border = next(
            (i for i, (one, two) in enumerate(zip(whole.tokens, alone.tokens, strict=False)) if one != two),
            min(len(whole.tokens), len(alone.tokens)),
        )
        values = [value for value in whole.values[border:] if value is not None]
        best = whole.best[border:]
        if not values or len(values) < len(best) or any(each is None for each in best):
            raise NoLikelihoods(
                f"The server gives no log-probability for every token of {request.continuation!r}.",
                where=self._endpoint.url,
                hint="A text without a context has a first token that nothing predicts."
                if not border
                else None,
            )
        greedy = all(
            most is not None and most <= value + _ROUNDING for most, value in zip(best, values, strict=True)
        )
        return ContinuationScore(math.fsum(values), len(values), len(request.continuation.encode()), greedy)

    def _largest(self, top: object) -> float | None:
        """Return the largest of the log-probabilities of one place, by token; `None` where there are none."""
        found = map(self._log_probability, top.values()) if isinstance(top, dict) else ()
        return max((value for value in found if value is not None), default=None)

    def _first_choice(
        self, path: str, body: Mapping[str, Any], stop: threading.Event | None
    ) -> dict[str, Any]:
        choices = self._endpoint.post(path, body, stop).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._malformed("no choices")
        return choices[0]

    def _log_probability(self, value: object) -> float | None:
        if value is None:
            return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not -math.inf < value <= _ROUNDING:  # type: ignore[operator]
            raise self._malformed(f"{value!r} as a log-probability")
        return float(value)  # type: ignore[arg-type]

    def _malformed(self, what: str) -> EndpointError:
        return EndpointError(
            f"The server's answer is not one of this API: it has {what}.",
            where=self._endpoint.url,
            hint="Is it an OpenAI-compatible server?",
        )


def check_settings(sampling: SamplingConfig) -> None:
    """Raise `UserError` where a setting is not one of the API's."""
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if field.name not in _SENT | _WITHOUT_EFFECT and value and value != field.default:
            raise UserError(
                f"An OpenAI-compatible endpoint has no setting {field.name}.",
                where="SamplingConfig",
                hint=f"It has {listed(sorted(_SENT), quote=False)}.",
            )
