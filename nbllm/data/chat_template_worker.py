"""The process that renders chat templates: a request a line on standard input, an answer a line on standard output.

Started by `nbllm.data.chat_template` as a script, so that it loads nothing of this package. A template comes with a
model and is not trusted. transformers renders it in jinja2's immutable sandbox, which gives it neither attributes of
Python objects nor files; time and memory, which the sandbox does not limit, the operating system limits here, and it
opens no more files either.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

MOST_BYTES = 512 << 20  # of memory beyond what is loaded
WARM_UP = (
    "{% for m in messages %}{{ m.role | trim ~ m.content | tojson }}{% endfor %}{{ strftime_now('%d %b %Y') }}",
    "{{ raise_exception('') }}",
)


class Renderer:
    """As much of a tokenizer as `apply_chat_template` asks; the tokens that it returns are the rendered text.

    Args:
        request: A template, and what it is told of the tokenizer.
    """

    apply_chat_template = PreTrainedTokenizerBase.apply_chat_template
    get_chat_template = PreTrainedTokenizerBase.get_chat_template
    _mark_chat_inputs = PreTrainedTokenizerBase._mark_chat_inputs
    _get_control_tokens = PreTrainedTokenizerBase._get_control_tokens

    def __init__(self, request: dict[str, Any]) -> None:
        from tokenizers import AddedToken

        self.chat_template = request["template"]
        self.special_tokens_map = request["special_tokens"]
        self.chat_control_tokens = request["control_tokens"]
        self.added_tokens_decoder = {
            number: AddedToken(content, special=special)
            for number, (content, special) in enumerate(request["added_tokens"])
        }

    def __call__(self, text: str, **options: Any) -> dict[str, str]:
        """Return the text where a tokenizer returns ids."""
        return {"input_ids": text}


def render(request: dict[str, Any]) -> str:
    """Render a conversation; control tokens that its messages spell are marked, as transformers' tokenizers expect."""
    text: str = Renderer(request).apply_chat_template(
        request["messages"], sanitize_control_tokens=True, return_dict=False, **request["options"]
    )
    return text


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Return the text, or what went wrong."""
    try:
        text = render(request)
        if len(text) > request["most_characters"]:
            return {"error": f"it makes {len(text):,} characters of it."}
        return {"text": text}
    except Exception as error:  # a template may raise whatever it likes
        return {"error": f"{type(error).__name__}: {error}"}


def limit() -> None:
    """Limit memory, the size of files and how many are open, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:
            loaded = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (loaded + MOST_BYTES, loaded + MOST_BYTES))
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 3)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))


def main() -> None:
    """Answer requests until standard input ends."""
    messages = [{"role": "user", "content": "Hi"}]
    for template in WARM_UP:  # what is imported on first use
        answer(
            {
                "template": template, "messages": messages, "special_tokens": {}, "control_tokens": None,
                "added_tokens": [], "options": {}, "most_characters": 1000,
            }
        )  # fmt: skip
    limit()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        if hasattr(signal, "setitimer"):  # ends this process, whatever it computes and whoever waits for it
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
        made = json.dumps(answer(request))
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(made + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
