"""A model behind an OpenAI-compatible endpoint, measured as one in this process is: `nb.evaluate(remote, "gsm8k")`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from nbllm.core.errors import UserError, listed, nearest
from nbllm.evaluation.endpoint import Endpoint, EndpointError
from nbllm.evaluation.preparing import Prepared
from nbllm.evaluation.requests import ContinuationScore, DocumentLikelihood, Generate, Likelihood
from nbllm.inference.config import SamplingConfig
from nbllm.inference.generation import Generation

if TYPE_CHECKING:
    from nbllm.evaluation.examples import Examples
    from nbllm.evaluation.requests import Answer, Request
    from nbllm.evaluation.tasks.base import Task

APIS = ("auto", "completions", "chat")
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}
_NO_SUCH = (
    400,
    404,
    405,
    422,
    501,
)  # by which servers say that they, or this model, do not offer what is asked
_MOST_STOPS = 4  # that OpenAI accepts; the text is cut at the others here
_PROBE = ("One two", " three")
_SENT = frozenset({"temperature", "top_p", "max_new_tokens", "stop", "seed"})  # settings that the API has
_WITHOUT_EFFECT = frozenset({"overflow", "batch_size"})  # on the text
_ROUNDING = 1e-6
_FORMAT = 1  # to be raised when the same request is answered otherwise than before

Item = TypeVar("Item")
Found = TypeVar("Found")


class _NoLikelihoods(EndpointError):
    """The endpoint answers a request for log-probabilities without them."""


@dataclasses.dataclass(frozen=True)
class AsText(Prepared):
    """A request as an endpoint is sent it: its text, of which nothing is left out."""

    @property
    def key(self) -> bytes:
        """Return a SHA-256 of the request."""
        facts = [type(self.request).__name__, dataclasses.asdict(self.request)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


@dataclasses.dataclass(frozen=True)
class _Echo:
    """A text's tokens as the endpoint sees them, each with its log-probability and that of the likeliest one."""

    tokens: tuple[str, ...]
    values: tuple[float | None, ...]
    best: tuple[float | None, ...]


class Remote:
    """A model behind an OpenAI-compatible endpoint; `nb.evaluate` takes it in the place of an `LM`.

    Texts are generated through `/completions`, or where the endpoint has none for this model through
    `/chat/completions` (the prompt is then one message of the user); the report says which. Likelihoods of
    continuations are read from `/completions` with `echo` and `logprobs`, as vLLM offers them. As in this process, the
    joining space belongs to the continuation, and the tokens of the context are those that it has alone; where a token
    spans the border, it counts to the continuation. Likelihoods of whole documents (the task "perplexity") need a model
    in this process.

    Prompts are not shortened here: what is too long, the server refuses. How a control token that a text spells is read
    is the server's choice. Answers are kept on the disk by URL, model, API and request. What the server has behind the
    model's name may change; `nb.evaluate(..., reuse=False)` asks anew.

    The key is read from the environment for each request, and stored nowhere.

    Args:
        url: Of the API, as "http://localhost:8000/v1".
        model: The model's name there.
        api: "completions", "chat", or "auto": completions where there are any.
        key_variable: The environment variable that has the key; `None` sends none.
        concurrency: Requests at a time.
        timeout: Seconds that one request may take.
        tries: How often a request is sent that fails for the moment (a limit of the rate, a server error, a lost
            connection), with a growing pause.

    Attributes:
        lock: Held while the model is measured.

    Raises:
        UserError: An argument is out of range, or the key would travel unencrypted to another machine.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        api: str = "auto",
        key_variable: str | None = "OPENAI_API_KEY",
        concurrency: int = 4,
        timeout: float = 120.0,
        tries: int = 5,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("timeout", timeout), ("tries", tries)):
            if not value > 0:
                raise UserError(f"{name} must be greater than 0, not {value!r}.", where="Remote")
        if not isinstance(model, str) or not model.strip():
            raise UserError(f"{model!r} is no name of a model.", where="Remote")
        if api not in APIS:
            raise UserError(
                f"api is {api!r}; it must be one of {listed(APIS)}.",
                where="Remote",
                hint=nearest(str(api), APIS),
            )
        self.model, self.api, self.concurrency = model, api, concurrency
        self.lock = threading.RLock()
        self._endpoint = Endpoint(url, key_variable=key_variable, timeout=timeout, tries=tries)
        self._has_likelihoods: bool | None = None  # not known yet

    @property
    def url(self) -> str:
        """Of the API."""
        return self._endpoint.url

    @property
    def name(self) -> str:
        """The model and its endpoint, in words."""
        return f"{self.model} at {self.url}"

    @property
    def api_in_words(self) -> str:
        """Through what the model is asked."""
        if self.api == "chat":
            return "/chat/completions: each prompt is one message of the user, in the model's chat template"
        return "/completions: each prompt as it is"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of endpoint, model and API, in hexadecimal: all that is known here of what determines the answers."""
        facts = [_FORMAT, self.url, self.model, self.api]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Remote({self.url!r}, model={self.model!r}, api={self.api!r})"

    def check(self, jobs: Sequence[tuple[Task, Examples]]) -> None:
        """Find out what the endpoint offers, and refuse tasks that need more.

        Args:
            jobs: Each task with its examples.

        Raises:
            UserError: The endpoint does not offer what tasks need; they are named.
            EndpointError: It cannot be reached, or refuses the key or the model.
        """
        kinds = [
            (task.name, {type(request) for request in task.requests(examples.rows[0])})
            for task, examples in jobs
        ]
        refused = [name for name, found in kinds if DocumentLikelihood in found]
        reason = "the likelihood of whole documents is measured of a model in this process alone."
        if not refused:
            refused = [name for name, found in kinds if Likelihood in found]
            reason = self._missing_likelihoods() if refused else ""
        if self.api == "auto":
            self._choose()
        if not reason or not refused:
            return
        able = [name for name, found in kinds if found == {Generate}]
        raise UserError(
            f"{listed(dict.fromkeys(refused))} cannot be measured through this endpoint: {reason}",
            where=self.url,
            hint=f"Tasks whose answers are written can{f', here {listed(dict.fromkeys(able))}' if able else ''}: "
            "gsm8k, squad, triviaqa and others.",
        )

    def prepare(self, requests: Sequence[Request]) -> list[Prepared]:
        """Return requests as they are sent."""
        return [AsText(request, [], []) for request in requests]

    def answer(self, prepared: Sequence[Prepared]) -> list[Answer]:
        """Return the model's answer to each request, in their order.

        Raises:
            EndpointError: The endpoint fails, after all tries, or answers otherwise than the API says.
            UserError: A request is one that the API does not have.
            KeyboardInterrupt: It was interrupted.
        """
        requests = [each.request for each in prepared]
        contexts = list(dict.fromkeys(_context(each) for each in requests if isinstance(each, Likelihood)))
        alone = dict(zip(contexts, self._at_once(self._echo, contexts), strict=True))
        if self.api == "auto" and any(isinstance(each, Generate) for each in requests):
            self._choose()
        numbers: list[int] = []
        seen: Counter[Request] = Counter()
        for request in requests:
            numbers.append(seen[request])
            seen[request] += 1

        def ask(item: tuple[Request, int], stop: threading.Event) -> Answer:
            request, number = item
            if isinstance(request, Generate):
                return self._generate(request, number, stop)
            if isinstance(request, Likelihood):
                whole = self._echo(f"{request.context}{request.continuation}", stop)
                return self._score(request, whole, alone[_context(request)])
            raise UserError("An endpoint does not tell how likely a whole document is.", where=self.url)

        return self._at_once(ask, list(zip(requests, numbers, strict=True)))

    def _at_once(
        self, function: Callable[[Item, threading.Event], Found], items: Sequence[Item]
    ) -> list[Found]:
        """Return what a function gives of each item, several at a time; the first error or an interruption ends all."""
        stop, pool = threading.Event(), ThreadPoolExecutor(self.concurrency)
        try:
            found = [pool.submit(function, item, stop) for item in items]
            return [each.result() for each in found]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _missing_likelihoods(self) -> str:
        """Return why the endpoint gives no likelihoods; "" where it does, and then its completions are used."""
        if self.api == "chat":
            return "/chat/completions does not tell how likely a given text is."
        if self._has_likelihoods:
            return ""
        context, continuation = _PROBE
        try:
            self._score(
                Likelihood(context, continuation), self._echo(context + continuation), self._echo(context)
            )
        except EndpointError as error:
            if error.status not in _NO_SUCH and not isinstance(error, _NoLikelihoods):
                raise
            return f"it does not tell how likely a given text is (/completions with echo). {error.what}"
        self._has_likelihoods, self.api = True, "completions"
        return ""

    def _choose(self) -> None:
        """Choose the API that generates: completions where there are any."""
        request = Generate(_PROBE[0], SamplingConfig(temperature=0.0, max_new_tokens=1))
        try:
            self._write("completions", request, 0)
            self.api = "completions"
        except EndpointError as error:
            if error.status not in _NO_SUCH:
                raise
            self._write("chat", request, 0)
            self.api = "chat"

    def _generate(self, request: Generate, number: int, stop: threading.Event) -> Generation:
        _check_settings(request.sampling)
        seed = secrets.randbelow(1 << 31) if request.sampling.seed is None else request.sampling.seed + number
        begun = time.monotonic()
        written, reason = self._write(self.api, request, seed, stop)
        text, stop_string = _cut(written, request.sampling.stop)
        return Generation(
            text,
            prompt=str(request.prompt),
            tokens=[],  # not told
            stopped_by="stop" if stop_string is not None else "length" if reason == "length" else "eos",
            stop_string=stop_string,
            seed=seed,
            score=None,
            seconds=time.monotonic() - begun,
        )

    def _write(
        self, api: str, request: Generate, seed: int, stop: threading.Event | None = None
    ) -> tuple[str, object]:
        """Return what the model writes, and why the server says it ended."""
        sampling, prompt = request.sampling, str(request.prompt)
        body: dict[str, Any] = {"model": self.model, "max_tokens": sampling.max_new_tokens}
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

    def _echo(self, text: str, stop: threading.Event | None = None) -> _Echo:
        """Return the tokens of a text with their log-probabilities; of "", none."""
        if not text:
            return _Echo((), (), ())
        body = {
            "model": self.model,
            "prompt": text,
            "max_tokens": 0,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }
        choice = self._first_choice(_PATHS["completions"], body, stop)
        found = choice.get("logprobs")
        if not isinstance(found, dict):
            raise _NoLikelihoods("The server's answer has no log-probabilities.", where=self.url)
        tokens, values, tops = (found.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
        lists = [each for each in (tokens, values, tops) if isinstance(each, list)]
        if (
            len(lists) < 3
            or len({len(each) for each in lists}) > 1
            or not all(isinstance(t, str) for t in lists[0])
        ):
            raise _NoLikelihoods(
                "The server's answer has not one token, log-probability and likeliest token for each place.",
                where=self.url,
            )
        if choice.get("text") != text or lists[1][:1] != [None]:
            # as of a server that ignores echo, whose log-probabilities are those of what it writes
            raise _NoLikelihoods(
                "The server does not return the text that it was given, and no more.", where=self.url
            )
        best = [self._largest(top) for top in lists[2]]
        return _Echo(tuple(lists[0]), tuple(map(self._log_probability, lists[1])), tuple(best))

    def _largest(self, top: object) -> float | None:
        """Return the largest of the log-probabilities of one place, by token; `None` where there are none."""
        found = map(self._log_probability, top.values()) if isinstance(top, dict) else ()
        return max((value for value in found if value is not None), default=None)

    def _score(self, request: Likelihood, whole: _Echo, alone: _Echo) -> ContinuationScore:
        """Return how likely a continuation is, from the tokens of the whole text and those of its context alone."""
        border = next(
            (i for i, (one, two) in enumerate(zip(whole.tokens, alone.tokens, strict=False)) if one != two),
            min(len(whole.tokens), len(alone.tokens)),
        )
        values = [value for value in whole.values[border:] if value is not None]
        best = whole.best[border:]
        if not values or len(values) < len(best) or any(each is None for each in best):
            raise _NoLikelihoods(
                f"The server gives no log-probability for every token of {request.continuation!r}.",
                where=self.url,
                hint="A text without a context has a first token that nothing predicts."
                if not border
                else None,
            )
        greedy = all(
            most is not None and most <= value + _ROUNDING for most, value in zip(best, values, strict=True)
        )
        return ContinuationScore(math.fsum(values), len(values), len(request.continuation.encode()), greedy)

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
            where=self.url,
            hint="Is it an OpenAI-compatible server?",
        )


def _context(request: Likelihood) -> str:
    """Return the context without the spaces that it ends with, which belong to the continuation."""
    return str(request.context).rstrip()


def _check_settings(sampling: SamplingConfig) -> None:
    """Raise `UserError` where a setting is not one of the API's."""
    for field in dataclasses.fields(sampling):
        value = getattr(sampling, field.name)
        if field.name not in _SENT | _WITHOUT_EFFECT and value and value != field.default:
            raise UserError(
                f"An OpenAI-compatible endpoint has no setting {field.name}.",
                where="SamplingConfig",
                hint=f"It has {listed(sorted(_SENT), quote=False)}.",
            )


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Return a text up to the first of the strings that end it, and that string."""
    places = [(text.index(stop), stop) for stop in stops if stop in text]
    if not places:
        return text, None
    place, stop = min(places)
    return text[:place], stop
