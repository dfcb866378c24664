"""Keys, tokens and passwords: by the beginnings that services gave them, or by the name that they are assigned to."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.candidates import MARK
from nbllm.data.pii.detector import DETECTORS, Detector, Find

# Bits a character (Shannon). Words repeated or counted up stay below; random characters of 20 or more are above.
LEAST_ENTROPY, LEAST_ENTROPY_ASSIGNED = 3.0, 3.0
_LONGEST_BLOCK = 16_384  # of a private key

# Service, what its secrets begin with (as the kernel looks for it), and the whole.
_SERVICES = (
    ("AWS key", "akia asia", rb"A[KS]IA[A-Z2-7]{16}"),
    ("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", rb"gh[pousr]_[A-Za-z0-9]{36,255}"),
    ("GitHub token", "github_pat_", rb"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    ("GitLab token", "glpat-", rb"glpat-[A-Za-z0-9_-]{20,64}"),
    ("Slack token", "xoxb- xoxp- xoxa- xoxr- xoxs-", rb"xox[bpars]-[A-Za-z0-9-]{20,250}"),
    ("Stripe key", "sk_live_ rk_live_ sk_test_ rk_test_", rb"[sr]k_(?:live|test)_[A-Za-z0-9]{16,247}"),
    ("Anthropic key", "sk-ant-", rb"sk-ant-[A-Za-z0-9_-]{32,200}"),
    ("OpenAI key", "sk-", rb"sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]{32,200}"),
    ("Google key", "aiza", rb"AIza[A-Za-z0-9_-]{35}"),
    ("Hugging Face token", "hf_", rb"hf_[A-Za-z0-9]{34,64}"),
    ("npm token", "npm_", rb"npm_[A-Za-z0-9]{36}"),
    ("PyPI token", "pypi-", rb"pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,250}"),
    ("SendGrid key", "sg.", rb"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),
    ("JSON web token", "eyj", rb"eyJ[A-Za-z0-9_-]{10,400}\.eyJ[A-Za-z0-9_-]{10,800}\.[A-Za-z0-9_-]{16,700}"),
)
_SERVICE = re.compile(
    rb"(?<![A-Za-z0-9_/+.-])(?:"
    + rb"|".join(rb"(" + body + rb")" for _, _, body in _SERVICES)
    + rb")(?![A-Za-z0-9_-])"
)
_BLOCK = re.compile(
    rb"-----BEGIN (?:[A-Z]{2,9} ){0,2}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!-)){64,%d}"
    rb"-----END (?:[A-Z]{2,9} ){0,2}PRIVATE KEY(?: BLOCK)?-----" % _LONGEST_BLOCK
)
_NAMES = (
    "passw pwd secret api_key api-key apikey access_key access-key accesskey accountkey token auth credential"
)
# A name that ends in one of these words, a sign, and a value in quotes or of characters that keys are made of.
_ASSIGNED = re.compile(
    rb"(?i)(?:passw(?:or)?d|passphrase|pwd|secret|api[_-]?key|access[_-]?key|accountkey|(?:auth|access|api|bearer|refresh|"
    rb"session|client|bot|user|private|secret)[_-]?token|auth[_-]?key|credential|secret[_-]?key|private[_-]?key)"
    rb"[\"'\]]{0,2}[ \t]{0,4}(?::=|=>|=|:)[ \t]{0,4}"
    rb"(?:[\"']([^\s\"'<>{}]{8,256})[\"']|([A-Za-z0-9+/_.~=-]{16,256})(?![^\s,;&\"'\)\]]))"
)
# What stands in place of a value: the reader's own, a variable, a call, an example.
_NO_VALUE = re.compile(
    rb"(?i)your|example|changeme|placeholder|redacted|dummy|sample|insert|replace|xxxx|\*\*\*|\.\.\.|<|\$|%\(|\(|::|"
    rb"process\.env|environ|getenv|config|settings|password|secret|123456|^none$|^null$|^true$|^false$|^https?:|^/|^[a-z_.]+$"
)
_EXAMPLE = re.compile(rb"EXAMPLE|(.)\1{9}", re.DOTALL)


def entropy(value: bytes) -> float:
    """Return the bits of a character, of how often each occurs in the value.

    Source: Shannon 1948, "A Mathematical Theory of Communication", section 6.
    """
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)


def find_secrets(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield keys and tokens of known services, private keys, and values that are assigned to a name as "api_key"."""
    for match in _SERVICE.finditer(document, start, stop):
        if entropy(match[0]) >= LEAST_ENTROPY and not _EXAMPLE.search(match[0]):
            yield Find(match.start(), match.end(), _SERVICES[(match.lastindex or 1) - 1][0])
    begin = document.find(b"-----BEGIN", start, stop)
    while begin >= 0:
        block = _BLOCK.match(document, begin)
        if block is not None:
            yield Find(begin, block.end(), "private key")
        begin = document.find(b"-----BEGIN", begin + 10 if block is None else block.end(), stop)
    for match in _ASSIGNED.finditer(document, start, stop):
        group = 1 if match[1] is not None else 2
        value = match[group]
        if _NO_VALUE.search(value) is None and entropy(value) >= LEAST_ENTROPY_ASSIGNED and _is_mixed(value):
            yield Find(match.start(group), match.end(group), "assigned to a name of a secret")


def _is_mixed(value: bytes) -> bool:
    """Whether a value has letters and digits: words and dates do not."""
    return re.search(rb"\d", value) is not None and re.search(rb"[A-Za-z]", value) is not None


class Marks(NamedTuple):
    """The words that go with secrets, as the kernel looks for them.

    Attributes:
        letters: uint8 (bytes,), all words one behind the other, in small letters.
        offsets: int64 (words + 1,), where each begins.
        assigned: bool (words,), whether it is the name that a secret is assigned to.
        begins: int16 (256 * 256,), the first word that begins with two bytes, in letters of either case; -1 for none.
    """

    letters: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    assigned: NDArray[np.bool_]
    begins: NDArray[np.int16]


@functools.cache
def marks() -> Marks:
    """Return the beginnings of the services' secrets, of private keys, and the names that secrets are assigned to."""
    found = {word: False for _, words, _ in _SERVICES for word in words.split()} | {"-----begin": False}
    found |= dict.fromkeys(_NAMES.split(), True)
    words = sorted(found)
    begins = np.full((256, 256), -1, np.int16)
    for number, word in reversed([*enumerate(words)]):
        for first, second in itertools.product(*({letter, letter.upper()} for letter in word[:2])):
            begins[ord(first), ord(second)] = number
    offsets = np.cumsum([0, *map(len, words)], dtype=np.int64)
    letters = np.frombuffer("".join(words).encode(), np.uint8)
    return Marks(letters, offsets, np.array([found[word] for word in words]), begins.ravel())


DETECTORS.register("secret")(Detector("secret", MARK, find_secrets))
