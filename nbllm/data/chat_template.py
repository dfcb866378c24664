"""Conversations rendered by a chat template, in a process that can be killed.

A template comes with a model and is not trusted. It cannot reach files or modules, and one that loops forever or makes
gigabytes ends with its process, after `SECONDS` or as soon as the caller asks. The process is kept for the next
conversation.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError

SECONDS = 10.0  # for one rendering; a usual template takes a thousandth
MOST_CHARACTERS, MOST_TIMES = 1 << 20, 4  # of the text: so many, and so many times those of the messages
START_SECONDS = 120.0  # for a process to start, on however busy a machine
MOST_IDLE = 2  # processes that are kept, where several conversations were rendered at a time
PERIOD = 0.05  # seconds between questions whether to stop

_WORKER = Path(__file__).with_name("chat_template_worker.py")
# It computes nothing with many threads, whose stacks would count as its memory; and it asks no network.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def encode_conversation(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
    """Return the token ids of a conversation as a chat template renders it.

    Control tokens that stand in messages are encoded as plain text, so a message cannot forge a role.

    Args:
        tokenizer: A transformers tokenizer.
        messages: With "role" and "content", and whatever else the template knows; values as JSON has them.
        **options: As for `render`.

    Raises:
        UserError: The template cannot render the conversation.
        CancelledError: `should_stop` said so.
    """
    text = render(tokenizer, messages, **options)
    ids = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    should_stop: Callable[[], bool] | None = None,
    **options: bool,
) -> str:
    """Return a conversation as a chat template renders it.

    Control tokens that its messages spell are between marks, which a tokenizer called with `sanitize_control_tokens`
    reads and drops.

    Args:
        tokenizer: A transformers tokenizer.
        messages: As for `encode_conversation`.
        template: Instead of the tokenizer's own.
        should_stop: Asked every `PERIOD` seconds while the template renders; a true answer ends it.
        **options: `add_generation_prompt` or `continue_final_message`, as transformers' `apply_chat_template` has them.

    Raises:
        UserError: The template cannot render the conversation, or takes too long or too much memory for it.
        CancelledError: `should_stop` said so.
    """
    added = [(token.content, token.special) for token in tokenizer.added_tokens_decoder.values()]
    controls = getattr(tokenizer, "chat_control_tokens", None)
    request = {
        "template": str(tokenizer.get_chat_template()) if template is None else template,
        "messages": [dict(message) for message in messages],
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "control_tokens": None if controls is None else [str(token) for token in controls],
        "added_tokens": added,
        "options": options,
        "seconds": SECONDS,
        "most_characters": MOST_CHARACTERS + MOST_TIMES * len(str(messages)),
    }
    answer = _ask(json.dumps(request).encode() + b"\n", should_stop)
    if "text" in answer:
        return str(answer["text"])
    raise UserError(
        f"The tokenizer's chat template cannot render this conversation: {answer['error']}",
        hint=answer.get(
            "hint", "Many templates want user and assistant in turn, and some know no system message."
        ),
    )


def prepare() -> None:
    """Start the process, which takes half a second, so that the first conversation does not wait for it."""
    if not _idle:
        _idle.append(_Worker())


def _ask(request: bytes, should_stop: Callable[[], bool] | None) -> dict[str, str]:
    """Have a process that waits for work, or a new one, answer."""
    worker = _take() or _Worker()
    try:
        answer = worker.ask(request, should_stop)
    except BaseException:  # an interrupt too: its answer would be taken for that to the next request
        worker.close()
        raise
    if answer is None:
        worker.close()
        return {
            "error": f"it takes more than {SECONDS:g} seconds, or too much memory.",
            "hint": "The template is broken or hostile: set another, tokenizer.chat_template = ...",
        }
    if len(_idle) < MOST_IDLE:
        _idle.append(worker)
    else:
        worker.close()
    return answer


def _take() -> _Worker | None:
    """Return a process that waits for work, if there is one."""
    while _idle:
        try:
            worker = _idle.pop()
        except IndexError:  # another thread was quicker
            return None
        if worker.owner == os.getpid():  # a fork inherits its parent's
            if worker.waits:
                return worker
            worker.close()
    return None


class _Worker:
    """A process that renders templates, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and script)
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # an interrupt is for who waits, not for it
        )
        self.owner = os.getpid()
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="chat template", daemon=True)
        self._reader.start()
        self._ready = False

    @property
    def waits(self) -> bool:
        """Whether it is still there."""
        return self._process.poll() is None

    def ask(self, request: bytes, should_stop: Callable[[], bool] | None) -> dict[str, str] | None:
        """Return the answer; `None` where it takes too long, or the process ends."""
        if not self._ready:
            if not self._receive(START_SECONDS, should_stop):
                raise UserError(
                    "The process that renders chat templates does not start.",
                    hint="See what `python -c 'import transformers.tokenization_utils_base'` says.",
                )
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._receive(SECONDS, should_stop)
        if not line:
            return None
        answer: dict[str, str] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a request that was not read
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _receive(self, seconds: float, should_stop: Callable[[], bool] | None) -> bytes:
        """Return the next line; nothing where it takes longer, or there will be none."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._lines.get(timeout=PERIOD)
            except queue.Empty:
                if should_stop is not None and should_stop():
                    raise CancelledError from None
                if time.monotonic() > deadline:
                    return b""


_idle: list[_Worker] = []


@atexit.register
def _close_all() -> None:
    for worker in iter(_take, None):
        worker.close()
