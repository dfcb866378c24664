"""Chat templates by name, for a tokenizer that has none or another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nbllm.core.errors import UserError, listed
from nbllm.core.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatTemplate(NamedTuple):
    """A chat template.

    Attributes:
        source: In Jinja, as transformers renders it; "": the roles are plain words (`chat_prompt.PLAIN_TEMPLATE`).
        tokens: The control tokens that it writes, besides the tokenizer's end token.
    """

    source: str
    tokens: tuple[str, ...] = ()


TEMPLATES: Registry[ChatTemplate] = Registry("chat template")
TEMPLATES.register("plain")(ChatTemplate(""))
TEMPLATES.register("chatml")(
    ChatTemplate(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    )
)
TEMPLATES.register("alpaca")(
    ChatTemplate(
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content }}\n\n"
        "{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
        "{% else %}### Response:\n{{ message.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}"
    )
)
TEMPLATES.register("vicuna")(
    ChatTemplate(
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content }} "
        "{% elif message.role == 'user' %}USER: {{ message.content }} "
        "{% else %}ASSISTANT: {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
)


def use_template(tokenizer: PreTrainedTokenizerBase | Any, name: str) -> None:
    """Give a tokenizer a chat template by its name; it is saved with the tokenizer.

    Args:
        tokenizer: A transformers tokenizer.
        name: "plain" (User: and Assistant:, which a message can imitate), "chatml", "alpaca" or "vicuna".

    Raises:
        UserError: There is no such template, or the tokenizer lacks a token that it writes.
    """
    template = TEMPLATES[name]
    if template.source and "eos_token" in template.source and tokenizer.eos_token is None:
        raise UserError(f"The template {name!r} ends an answer with an end token, which the tokenizer lacks.")
    missing = [token for token in template.tokens if token not in tokenizer.get_added_vocab()]
    if missing:
        raise UserError(
            f"The tokenizer lacks {listed(missing)}, which the template {name!r} writes.",
            hint=f'lm.tokenizer.add_special_tokens({{"additional_special_tokens": {missing}}}); lm.resize()',
        )
    tokenizer.chat_template = template.source or None
