"""Internet addresses that anybody can reach."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from nbllm.data.kernels.candidates import ADDRESS
from nbllm.data.pii.detector import DETECTORS, Detector, Find, has_context

_FOUR = re.compile(rb"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)")
_SIX = re.compile(rb"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")
# What has four numbers with dots between and is no address.
_NUMBERED = re.compile(
    rb"(?i)\b(?:versions?|ver|release[sd]?|build|firmware|driver|section|sect|chapter|clause|article|paragraph|figure|"
    rb"table|oid|iso|rfc|kernel)[ .:=#]{0,3}$"
)
_GLOBAL_SIX = ipaddress.IPv6Network("2000::/3")  # what is assigned to anybody so far


def find_ips(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield the addresses, of version 4 and 6, that are public: neither private nor reserved nor for documentation."""
    for match in _FOUR.finditer(document, start, stop):
        if not has_context(_NUMBERED, document, match.start()) and _is_public(match[0]):
            yield Find(match.start(), match.end(), "public IPv4 address")
    for match in _SIX.finditer(document, start, stop):
        if _is_public(match[0]):
            yield Find(match.start(), match.end(), "public IPv6 address")


def _is_public(text: bytes) -> bool:
    try:
        address = ipaddress.ip_address(text.decode())
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_SIX:
        return False
    return address.is_global and not address.is_multicast


DETECTORS.register("ip")(Detector("ip", ADDRESS, find_ips))
