"""E-mail addresses, and URLs that hold a user and a password."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nbllm.data.kernels.candidates import AT
from nbllm.data.pii.detector import DETECTORS, Detector, Find

# Letters of two bytes, as in "josé", belong to an address; those of three, as of Chinese, stand beside one without
# a space. A pattern begins only where no character of the local part stands before: each is read once.
_LETTER = rb"[A-Za-z0-9]|[\xc3-\xd4][\x80-\xbf]"
_LOCAL = rb"A-Za-z0-9_.+'%&$!#*/=?^`{|}~-"
_ADDRESS = re.compile(
    rb"(?<![" + _LOCAL + rb"])(?:[" + _LOCAL + rb"]|[\xc3-\xd4][\x80-\xbf]){1,64}@"
    rb"(?:(?:" + _LETTER + rb")(?:(?:" + _LETTER + rb"|-){0,61}(?:" + _LETTER + rb"))?\.){1,8}"
    rb"(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24}|(?:[\xc3-\xd4][\x80-\xbf]){2,24})(?![A-Za-z0-9_-]|\.[A-Za-z0-9])"
)
_AROUND = b"'`*/=?^{|}~!#$%&."  # may stand around an address as well as in it: `ann@example.com`
# What an "@" before a name makes look like an address: pictures for screens of twice the resolution, "logo@2x.png".
_FILES = frozenset(
    b"png jpg jpeg gif svg webp bmp ico tiff pdf css scss js mjs ts tsx jsx json html htm xml php txt csv log exe "
    b"dll jar war tar gz tgz bz2 yml yaml toml lock local localhost localdomain internal".split()
)
_CREDENTIALS = re.compile(
    rb"(?<![A-Za-z0-9])[A-Za-z][A-Za-z0-9+.-]{1,15}://([^\s/@:\"'<>?#\[\](){}$%,;]{1,64}):([^\s/@\"'<>\[\](){}$,;]{3,128})@"
    rb"[A-Za-z0-9\[]"
)
_IN_URL = re.compile(rb"://[^\s/@]{1,80}:$")
# What documentation writes in place of one's own.
_PLACEHOLDERS = frozenset(b"user username name login password passwd pass pwd secret token xxx xxxx".split())


def find_addresses(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield e-mail addresses."""
    for match in _ADDRESS.finditer(document, start, stop):
        found = match[0]
        local, _, domain = found.rpartition(b"@")
        first = match.start() + len(local) - len(local.lstrip(_AROUND))
        local = local.lstrip(_AROUND)
        if not local or local.endswith(b".") or b".." in local:
            continue
        if domain.rpartition(b".")[2].lower() in _FILES:
            continue
        # "git@host:owner/project" names a repository, and "https://user:word@host" a password.
        if local == b"git" and document[match.end() : match.end() + 1] in (b":", b"/"):
            continue
        if document[first - 1 : first] == b":" and _IN_URL.search(document, max(0, first - 96), first):
            continue
        yield Find(first, match.end(), "address with a domain")


def find_credentials(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield user and password of URLs, as "ann:hunter2" of "https://ann:hunter2@host"."""
    for match in _CREDENTIALS.finditer(document, start, stop):
        user, password = match[1], match[2]
        if {user.lower(), password.lower()} <= _PLACEHOLDERS or set(password) <= set(b"*x."):
            continue
        yield Find(match.start(1), match.end(2), "user and password in a URL")


DETECTORS.register("credentials")(Detector("credentials", AT, find_credentials))
DETECTORS.register("email")(Detector("email", AT, find_addresses))
