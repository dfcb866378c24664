"""A model behind an OpenAI-compatible endpoint, measured as one in this process is: `nb.evaluate(remote, "gsm8k")`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from nbllm.core.errors import UserError, listed, nearest
from nbllm.evaluation.completions import Completions, NoLikelihoods, check_settings
from nbllm.evaluation.endpoint import Endpoint, EndpointError
from nbllm.evaluation.preparing import Prepared
from nbllm.evaluation.requests import DocumentLikelihood, Generate, Likelihood
from nbllm.inference.config import SamplingConfig
from nbllm.inference.generation import Generation

if TYPE_CHECKING:
    from nbllm.evaluation.examples import Examples
    from nbllm.evaluation.requests import Answer, Request
    from nbllm.evaluation.tasks.base import Task

APIS = ("auto", "completions", "chat")
_NO_SUCH = (
    400,
    404,
    405,
    422,
    501,
)  # by which servers say that they, or this model, do not offer what is asked
_PROBE = ("One two", " three")
_FORMAT = 1  # to be raised when the same request is answered otherwise than before

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class AsText(Prepared):
    """A request as an endpoint is sent it: its text, of which nothing is left out."""

    @property
    def key(self) -> bytes:
        """Return a SHA-256 of the request."""
        facts = [type(self.request).__name__, dataclasses.asdict(self.request)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


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
        self._completions = Completions(self._endpoint, model)
        self._has_likelihoods = False  # or not known yet

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
        alone = dict(zip(contexts, self._at_once(self._completions.echo, contexts), strict=True))
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
                whole = self._completions.echo(f"{request.context}{request.continuation}", stop)
                return self._completions.score(request, whole, alone[_context(request)])
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
            whole, alone = (self._completions.echo(text) for text in (context + continuation, context))
            self._completions.score(Likelihood(context, continuation), whole, alone)
        except EndpointError as error:
            if error.status not in _NO_SUCH and not isinstance(error, NoLikelihoods):
                raise
            return f"it does not tell how likely a given text is (/completions with echo). {error.what}"
        self._has_likelihoods, self.api = True, "completions"
        return ""

    def _choose(self) -> None:
        """Choose the API that generates: completions where there are any."""
        request = Generate(_PROBE[0], SamplingConfig(temperature=0.0, max_new_tokens=1))
        try:
            self._completions.write("completions", request, 0)
            self.api = "completions"
        except EndpointError as error:
            if error.status not in _NO_SUCH:
                raise
            self._completions.write("chat", request, 0)
            self.api = "chat"

    def _generate(self, request: Generate, number: int, stop: threading.Event) -> Generation:
        check_settings(request.sampling)
        seed = secrets.randbelow(1 << 31) if request.sampling.seed is None else request.sampling.seed + number
        begun = time.monotonic()
        written, reason = self._completions.write(self.api, request, seed, stop)
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


def _context(request: Likelihood) -> str:
    """Return the context without the spaces that it ends with, which belong to the continuation."""
    return str(request.context).rstrip()


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Return a text up to the first of the strings that end it, and that string."""
    places = [(text.index(stop), stop) for stop in stops if stop in text]
    if not places:
        return text, None
    place, stop = min(places)
    return text[:place], stop
