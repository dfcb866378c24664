"""The chat panel: a conversation with a model, each token with its probability."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, ClassVar

from nbllm.core.errors import RefusedError, UserError
from nbllm.core.signature import takes
from nbllm.core.terminal import visible_line
from nbllm.data.chat_template import prepare
from nbllm.inference.chat import AnswerToken, answer, chat_config
from nbllm.inference.chat_prompt import render_chat
from nbllm.inference.config import CHAT_SETTINGS, SamplingConfig
from nbllm.inference.messages import check_messages
from nbllm.inference.runners.compiled import load_kernel
from nbllm.lm import LM
from nbllm.widgets.base import Message, Panel
from nbllm.widgets.conversation import RUNNING, Conversation, Turn

PERIOD = 0.05  # seconds between updates, at least: 20 a second, whatever the model's speed
CONTROLS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_p": float,
    "max_new_tokens": int,
    "seed": int,
}
MEDIA = {"json": "application/json", "md": "text/markdown"}


class ChatPanel(Panel):
    """A conversation with a model; `nb.chat(lm)`.

    The conversation lives in the kernel, so a reloaded page and a second view show it, too. An answer is written in a
    thread; it is stopped before its next token, whatever the kernel is busy with, where the front end has subshells
    (JupyterLab 4.4 with ipykernel 7).

    Args:
        lm: The model.
        system: What it is told beforehand.
        config: How it answers.
        on_change: Called in the answer's thread when an answer has ended.
    """

    front_end: ClassVar[str] = "chat"

    def __init__(
        self, lm: LM, system: str, config: SamplingConfig, on_change: Callable[[], None] | None = None
    ) -> None:
        self._stop = threading.Event()  # of the answer being written; first, as in `Panel`
        super().__init__()
        self.lm, self.config, self.on_change = lm, config, on_change
        self._conversation = Conversation(system)
        self._began = 0.0
        self._given: dict[int, int] = {}  # tokens of each answer that viewers have got
        self._dirty = False  # something else has changed that viewers have not got
        self._seq = 0
        self.begin("chat panel")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as `LM.chat` takes it; a copy."""
        return self._conversation.messages

    @property
    def name(self) -> str:
        """What the model is called: where it was opened from, or that it is new."""
        return visible_line(self.lm.origin) or f"a new {self.lm.config.family} model"

    @property
    def title(self) -> str:
        """One line that says whom the chat is with."""
        return f"Chat with {self.name}"

    @property
    def running(self) -> bool:
        """Whether an answer is being written."""
        turns = self._conversation.turns
        return bool(turns) and turns[-1].state == RUNNING

    def close(self) -> None:
        """Stop the answer and the panel; what is shown stays."""
        self._stop.set()
        super().close()

    def __repr__(self) -> str:
        return self._conversation.to_text(self.title, self._shape)

    def _repr_html_(self) -> str:
        return self._conversation.to_html(self.title, self._shape)

    # -- from viewers -------------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """Answer a viewer: hello, ask, edit, regenerate, stop, clear, controls, prompt, export."""
        kind = message.get("type")
        if kind == "hello":
            self._welcome(message["viewer"])
            return
        if kind == "stop":
            self._stop.set()
            return
        if kind == "export":
            self._export(message)
            return
        if "controls" in message:
            self._take_controls(message["controls"])
        if kind == "prompt":
            draft = _text(message)
            work = threading.Thread(target=self._show_prompt, args=(message["viewer"], draft), daemon=True)
            work.start()
            return
        if kind != "controls":
            if self.running:
                raise RefusedError("An answer is being written: stop it first.")
            self._change(str(kind), message)
            self.tell("accepted", to=message["viewer"], request=message.get("request"))
        self._dirty = True
        self._woken.set()

    def _change(self, kind: str, message: Message) -> None:
        turns = self._conversation.turns
        config = self.config
        if kind == "clear":
            turns.clear()
            return
        if kind == "ask":
            text = _question(message)
        elif kind == "edit":
            text = _question(message)
            self._conversation.cut(self._turn(message, "user"))
        elif kind == "regenerate":
            if not turns or turns[-1].role != "assistant":
                raise RefusedError("There is no answer to regenerate.")
            text = turns[-2].text
            self._conversation.cut(turns[-2])
            config = config.replace(seed=None)  # the same seed would give the same answer
        else:
            raise RefusedError(f"This panel knows no message {kind!r}.")
        self._conversation.add("user", text)
        messages = self.messages
        self._write(self._conversation.add("assistant", state=RUNNING), messages, config)

    def _turn(self, message: Message, role: str) -> Turn:
        for turn in self._conversation.turns:
            if turn.id == message.get("turn") and turn.role == role:
                return turn
        raise RefusedError("That turn is no longer part of the conversation.")

    def _take_controls(self, controls: object) -> None:
        if not isinstance(controls, dict):
            raise RefusedError("The controls must be names with values.")
        settings: dict[str, Any] = {}
        for name, read in CONTROLS.items():
            if name in controls:
                settings[name] = _number(name, str(controls[name]).strip(), read)
        system = controls.get("system", self._conversation.system)
        if not isinstance(system, str):
            raise RefusedError("The system prompt must be a text.")
        if system:
            check_messages([{"role": "system", "content": system}, {"role": "user", "content": ""}])
        self.config = self.config.replace(**settings)
        self._conversation.system = system

    def _export(self, message: Message) -> None:
        form = message.get("format")
        if form == "json":
            text = self._conversation.to_json(
                model=self.name, shape=self._shape, settings=self.config.to_dict()
            )
        elif form == "md":
            text = self._conversation.to_markdown(self.title, self._shape)
        else:
            raise RefusedError(f"A conversation cannot be exported as {form!r}.")
        name = f"chat-{time.strftime('%Y%m%d-%H%M%S')}.{form}"
        self.tell("exported", to=message["viewer"], name=name, media=MEDIA[form], text=text)

    def _show_prompt(self, viewer: str, draft: str) -> None:
        """Send what the model read for its last answer, or would read for a draft; a template is not trusted."""
        messages = self.messages
        while not draft and messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if draft or not messages or messages[-1]["role"] != "user":
            messages.append({"role": "user", "content": draft})
        try:
            prompt = render_chat(self.lm.tokenizer, messages)
        except UserError as error:
            self.tell("prompt", to=viewer, parts=[], count=0, reason=error.one_line)
        else:
            self.tell("prompt", to=viewer, parts=prompt.parts, count=len(prompt.tokens), reason="")

    # -- answers ------------------------------------------------------------------------------------------------

    def _write(self, turn: Turn, messages: list[dict[str, str]], config: SamplingConfig) -> None:
        """Begin to write an answer, in a thread of its own."""
        self._stop = stop = threading.Event()
        self._began = time.perf_counter()

        def take(token: AnswerToken) -> None:
            with self.guard:
                turn.take(token)
            self._woken.set()

        def write() -> None:
            try:
                prompt = render_chat(
                    self.lm.tokenizer, messages, end_tokens=self.lm.end_tokens, should_stop=stop.is_set
                )
                made = answer(
                    self.lm.causal_network_for("generate"), self.lm.tokenizer, prompt, config,
                    on_token=take, should_stop=stop.is_set, lock=self.lm.lock,
                )  # fmt: skip
            except CancelledError:  # stopped while the template rendered
                self._end(turn, "stopped", facts=self._facts(num_tokens=0, context=0, stopped_by="caller"))
            except UserError as error:
                self._end(turn, "failed", error=error.one_line)
            except Exception as error:
                self._end(turn, "failed", error=f"{type(error).__name__}: {error}")
                raise
            else:
                facts = self._facts(
                    num_tokens=len(made.tokens),
                    context=len(prompt.tokens) + len(made.tokens),
                    stopped_by=made.stopped_by,
                    seconds=made.seconds,
                    tokens_per_second=made.tokens_per_second,
                    seed=str(made.seed),  # of 63 bits, which JavaScript's numbers have not
                )
                self._end(turn, "stopped" if made.stopped_by == "caller" else "done", facts=facts)

        threading.Thread(target=write, name="chat answer", daemon=True).start()

    def _facts(self, *, num_tokens: int, context: int, stopped_by: str, **others: Any) -> dict[str, Any]:
        """Return what is told of an answer that has ended."""
        return {
            "num_tokens": num_tokens,
            "context": min(context, self.lm.config.max_positions),  # the last token may have no position
            "max_positions": self.lm.config.max_positions,
            "stopped_by": stopped_by,
            **{"seconds": 0.0, "tokens_per_second": 0.0, **others},
        }

    def _end(self, turn: Turn, state: str, *, error: str = "", facts: dict[str, Any] | None = None) -> None:
        with self.guard:
            self._tell_news()  # the last tokens first: an answer that is said to be complete is shown complete
            turn.state, turn.error, turn.facts = state, error, facts or {}
            self._dirty = True
            self._tell_news()  # now: a person who has stopped it is not kept waiting
        if self.on_change is not None:
            self.on_change()

    # -- to viewers ---------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Tell what is new when there is something, not more often than `PERIOD` says."""
        while not self._closed.is_set():
            self.rest(math.inf)
            self._woken.clear()
            with self.guard:
                self._tell_news()
            self._closed.wait(PERIOD)

    def _welcome(self, viewer: str) -> None:
        self._tell_news()
        self._tell_state(viewer)
        for turn in self._conversation.turns:
            self._tell_tokens(turn, 0, viewer)

    def _tell_news(self) -> None:
        if self._dirty:
            self._seq += 1
            self._tell_state()
            self._dirty = False
        for turn in self._conversation.turns:
            self._tell_tokens(turn, self._given.get(turn.id, 0))
            self._given[turn.id] = len(turn.tokens)

    def _tell_state(self, viewer: str | None = None) -> None:
        if not self.viewers:
            return
        turns = [
            {
                "id": turn.id,
                "role": turn.role,
                "text": turn.text if turn.role == "user" else "",
                "state": turn.state,
                "facts": turn.facts,
                "error": turn.error,
            }
            for turn in self._conversation.turns
        ]
        settings = {name: _shown(getattr(self.config, name)) for name in CONTROLS}
        controls = {**settings, "system": self._conversation.system}
        self.tell(
            "state",
            to=viewer,
            seq=self._seq,
            name=self.name,
            shape=self._shape,
            controls=controls,
            turns=turns,
        )

    def _tell_tokens(self, turn: Turn, first: int, viewer: str | None = None) -> None:
        if not self.viewers or first >= len(turn.tokens):
            return
        tokens = [
            [token.text, token.shown, round(token.probability, 6), _rounded(token.alternatives)]
            for token in turn.tokens[first:]
        ]
        seconds = time.perf_counter() - self._began
        self.tell("tokens", to=viewer, turn=turn.id, first=first, tokens=tokens, seconds=seconds)

    @property
    def _shape(self) -> str:
        return repr(self.lm).removeprefix("LM(").removesuffix(")")


@takes(CHAT_SETTINGS, SamplingConfig)
def chat(lm: LM, *, system: str = "", **sampling: Any) -> ChatPanel:
    """Return a panel to talk to a model in; a new conversation each time.

    In it: a system prompt, temperature, top-p, length and seed, stop, editing an earlier question, another answer,
    each token's probability with its likeliest alternatives, the rendered template, export. `.messages` is the
    conversation in Python.

    Args:
        lm: The model.
        system: What it is told beforehand.
        **sampling: Settings of `SamplingConfig` to begin with. Unless given, they are those of `LM.chat`, and every
            answer has a seed of its own.

    Raises:
        UserError: A setting is unknown or out of range.
    """
    from nbllm.widgets.show import refresh

    if not isinstance(lm, LM):
        raise UserError(f"There is no chat with {type(lm).__name__}.", hint="nb.load(path) opens a model.")
    check_messages([{"role": "system", "content": system}, {"role": "user", "content": ""}])
    config = chat_config({"seed": None, **sampling}, lm.sampling)
    # Now, while the cell can say so: an answer is written in a thread of its own.
    load_kernel(lm.causal_network_for("generate"))
    prepare()
    return ChatPanel(lm, system, config, on_change=refresh)


def _text(message: Message) -> str:
    text = message.get("text", "")
    if not isinstance(text, str):
        raise RefusedError("The text must be a text.")
    return text


def _question(message: Message) -> str:
    text = _text(message)
    if not text.strip():
        raise RefusedError("The question is empty.")
    check_messages(text)
    return text


def _number(name: str, text: str, read: Callable[[str], float]) -> float | None:
    if name == "seed" and not text:
        return None
    try:
        return read(text)
    except ValueError:
        kind = "a whole number" if read is int else "a number"
        raise UserError(f"{name} must be {kind}, not {text!r}.") from None


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _rounded(alternatives: tuple[tuple[str, float], ...]) -> list[list[Any]]:
    return [[text, round(probability, 6)] for text, probability in alternatives]
