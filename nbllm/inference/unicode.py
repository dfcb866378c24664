"""Whether a text can be tokenized at all."""

from __future__ import annotations

from nbllm.core.errors import UserError


def check_unicode(text: str, name: str, where: str) -> None:
    """Raise `UserError` for a text that is no Unicode: it is called `name`, and stands at `where`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The {name} holds half a character (a lone surrogate), which is no Unicode text.",
            where=f"{where}, character {error.start}",
            hint=f'clean it: {name}.encode("utf-8", "replace").decode()',
        ) from None
