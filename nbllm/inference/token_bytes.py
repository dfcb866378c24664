"""The bytes of tokens: whether a text that is cut after a token is cut inside a character."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Sequence
from typing import Any

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_LONGEST = 4  # bytes of a character in UTF-8


class TokenBytes:
    """Knows the bytes of a tokenizer's tokens, where these may be parts of characters.

    That is so in byte-level vocabularies, which write each byte as a character, and in those with tokens such as
    `<0xE2>` for the bytes of characters that they lack.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._known = backend is not None
        decoder = b"" if backend is None or backend.decoder is None else backend.decoder.__getstate__()
        self._byte_level, self._byte_fallback = (
            name in decoder for name in (b'"ByteLevel"', b'"ByteFallback"')
        )
        added = tokenizer.added_tokens_decoder if self._known else {}
        self._left_out = {int(number) for number, token in added.items() if token.special}

    def end_inside_character(self, tokens: Sequence[int]) -> bool:
        """Return whether the text of tokens, which ends in a replacement character, may yet end otherwise.

        Args:
            tokens: Token ids, those of whole characters at least.
        """
        if not self._known:
            return True
        if self._byte_level:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            decoder.decode(self._last_bytes(tokens))
            return bool(decoder.getstate()[0])
        if self._byte_fallback:
            # Bytes in a row are decoded as a whole: where they are no text, each is a replacement character.
            try:
                self._bytes_in_a_row(tokens).decode()
            except UnicodeDecodeError:
                return True
        return False

    def _last_bytes(self, tokens: Sequence[int]) -> bytes:
        """Return the last bytes of the text, enough for any character."""
        found = b""
        for token in reversed(tokens):
            text = self._text(token)
            if all(character in _bytes_by_character() for character in text):
                found = bytes(_bytes_by_character()[character] for character in text) + found
            else:  # an added token
                found = text.encode() + found
            if len(found) >= _LONGEST:
                break
        return found

    def _bytes_in_a_row(self, tokens: Sequence[int]) -> bytes:
        """Return the bytes that the last tokens stand for."""
        found: list[int] = []
        for token in reversed(tokens):
            if token in self._left_out:
                continue
            match = _BYTE.fullmatch(self._text(token))
            if match is None:
                break
            found.append(int(match[1], 16))
        return bytes(reversed(found))

    def _text(self, token: int) -> str:
        return "" if token in self._left_out else str(self._tokenizer.convert_ids_to_tokens(token) or "")


def special_tokens(tokenizer: Any, texts: Sequence[str]) -> dict[int, str]:
    """Return those of the texts that are special tokens, by their ids."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        int(number): token.content
        for number, token in added.items()
        if token.special and token.content in texts
    }


@functools.cache
def _bytes_by_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {str(character): int(byte) for byte, character in bytes_to_unicode().items()}
