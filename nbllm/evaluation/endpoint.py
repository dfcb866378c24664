"""JSON over HTTP to an OpenAI-compatible endpoint: key, timeouts, repeated tries, limits, errors with hints."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.terminal import shorten

_MAX_BYTES = 1 << 24  # of an answer
_CHUNK = 1 << 16
_FIRST_WAIT = 0.5  # seconds before the second try; each further wait is twice as long
_MAX_WAIT = 60.0  # seconds before the next try, whatever the server asks for
_MESSAGE = 300  # characters of what a server says is wrong
_TRY_AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
_HINTS = {
    401: "The key is read from the environment variable {variable}; set it before Python starts.",
    403: "The key is read from the environment variable {variable}; it may not have this right.",
    404: "Is the URL the one that ends in /v1, and the name of the model the server's?",
    429: "Use fewer requests at a time: Remote(..., concurrency=1). Answers so far are kept.",
}


class EndpointError(UserError):
    """An endpoint cannot be reached or refuses a request.

    Attributes:
        status: The HTTP status; 0 where there was no answer.
    """

    status: int = 0


class Endpoint:
    """An HTTP endpoint that is sent JSON and answers JSON.

    Redirects are refused, so that the key goes to the host of the URL alone. The key is read anew for each request and
    kept nowhere.

    Args:
        url: Without user name, query and fragment.
        key_variable: The environment variable with the key; `None` sends none.
        timeout: Seconds that one request may take.
        tries: How often a request is sent that the server was too busy for, or that was lost on the way.

    Raises:
        UserError: The URL is none of these, or the key would travel unencrypted to another machine.
    """

    def __init__(self, url: str, *, key_variable: str | None, timeout: float, tries: int) -> None:
        self.url = url.rstrip("/")
        self.key_variable = key_variable
        self.timeout, self.tries = timeout, tries
        host = _checked_host(self.url)
        if self._key() and self.url.startswith("http:") and not _is_loopback(host):
            raise UserError(
                f"The key in {key_variable} would travel to {host} unencrypted.",
                where=self.url,
                hint="Use an https URL, or key_variable=None, which sends no key.",
            )
        handlers: list[Any] = [_NoRedirect()]
        if _is_loopback(host):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event | None = None) -> dict[str, Any]:
        """Return the JSON object that the endpoint answers.

        Args:
            path: Below the URL: "/completions".
            body: What is sent.
            stop: Ends the waiting for another try when set.

        Raises:
            EndpointError: It does not answer, or with an error, after all tries; or with what is no JSON object.
        """
        stop = stop or threading.Event()
        for attempt in range(1, self.tries + 1):
            try:
                return _json_object(self._read(path, json.dumps(body).encode()), self.url)
            except urllib.error.HTTPError as error:
                if error.code not in _TRY_AGAIN or attempt == self.tries or stop.is_set():
                    raise self._refused(error) from None
                wait = _asked_wait(error) or _FIRST_WAIT * 2 ** (attempt - 1)
                error.close()
            except (OSError, HTTPException) as error:
                reason = getattr(error, "reason", error)
                final = isinstance(reason, (ConnectionRefusedError, socket.gaierror))
                if final or attempt == self.tries or stop.is_set():
                    raise self._unreachable(reason) from None
                wait = _FIRST_WAIT * 2 ** (attempt - 1)
            stop.wait(min(wait, _MAX_WAIT))
        raise AssertionError("a try returns or raises")

    def _read(self, path: str, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "nbllm"}
        key = self._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url + path, data, headers)  # noqa: S310 (the scheme was checked)
        deadline = time.monotonic() + self.timeout
        parts, size = [], 0
        with self._opener.open(request, timeout=self.timeout) as answer:
            while chunk := answer.read1(_CHUNK):
                parts.append(chunk)
                size += len(chunk)
                if size > _MAX_BYTES:
                    raise EndpointError(
                        f"The server's answer is longer than {_MAX_BYTES >> 20} MiB.", where=self.url
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError
        return b"".join(parts)

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if not (key.isascii() and key.isprintable() and " " not in key) and key:
            raise UserError(
                f"What {self.key_variable} holds is no key: it has spaces or unprintable characters."
            )
        return key

    def _refused(self, error: urllib.error.HTTPError) -> EndpointError:
        with error:
            said = _message(error)
        key = self._key()
        said = shorten(said.replace(key, "***") if key else said, _MESSAGE)
        hint = _HINTS.get(error.code)
        if 300 <= error.code < 400:
            hint = "Redirects are not followed, so that the key goes nowhere else. Give the final URL."
        made = EndpointError(
            f"The server answers {error.code}{f': {said}' if said else ''}",
            where=self.url,
            hint=hint and hint.format(variable=self.key_variable or "that key_variable names"),
        )
        made.status = error.code
        return made

    def _unreachable(self, reason: object) -> EndpointError:
        late = isinstance(reason, TimeoutError)
        what = f"did not answer within {self.timeout:g} seconds" if late else f"cannot be reached: {reason}"
        hint = "timeout=... sets how long to wait." if late else "Is the server running, and the URL right?"
        return EndpointError(f"The server {what}.", where=self.url, hint=hint)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing: the redirect is reported as the error that it then is."""


def _checked_host(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not host or not plain or parts.scheme not in ("http", "https"):
        raise UserError(
            f"{url!r} is no HTTP address.", hint='nb.evaluation.Remote("http://localhost:8000/v1", ...)'
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            "The URL has a user name, a query or a fragment, which a report would show.",
            hint="Give the address alone; a key is read from the environment (key_variable=...).",
        )
    return host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _json_object(data: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        begin = shorten(data[:_MESSAGE].decode(errors="replace"), 80)
        raise EndpointError(
            f"The server's answer is no JSON object: {begin!r}",
            where=url,
            hint="Is the URL that of an OpenAI-compatible API? It usually ends in /v1.",
        )
    return found


def _message(error: urllib.error.HTTPError) -> str:
    """Return what the server says is wrong; "" where it says nothing."""
    try:
        data = error.read(_CHUNK)
    except (OSError, HTTPException):
        return ""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")
    inner = found.get("error", found) if isinstance(found, dict) else found
    said = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(said)


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Return how many seconds the server asks to wait; 0 where it does not say."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
