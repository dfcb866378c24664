"""Telephone numbers, by the numbering plans of all countries."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib.util import find_spec

from nbllm.core.errors import UserError, listed
from nbllm.data.kernels.candidates import DIGITS
from nbllm.data.pii.detector import DETECTORS, Detector, Find, has_context

REGIONS = ("US",)  # where a number without a country's prefix may be from
INSTALL = "pip install 'nbllm[privacy]'"

_INTERNATIONAL = re.compile(rb"(?<![\w+])\+\d(?:[ .()/-]{0,3}\d){6,14}(?![\w]|[ .-]?\d)")
# Two to six groups of digits. What stands in a longer row of numbers is a table's.
_NATIONAL = re.compile(
    rb"(?<![\w+.,/:-])(?<!\d[ ])\(?\d{2,6}\)?(?:[ .\-/]{1,2}\(?\d{1,8}\)?){1,5}(?![\w]|[ .,\-/:]{1,2}\(?\d|%)"
)
_BARE = re.compile(rb"(?<![\w+.,/:-])\d{7,13}(?![\w]|[.,:/-]\d)")
_DATE = re.compile(
    rb"(?:19|20)\d\d([-./ ])\d{1,2}\1\d{1,2}(?:[ ]\d{1,2})?|\d{1,2}([-./ ])\d{1,2}\2(?:19|20)?\d\d(?:[ ]\d{1,2})?"
)
_CALLED = re.compile(
    rb"(?i)(?<![a-z])(?:tele?(?:phone|fon|fono)?|phone|ph|call(?: me| us)?|fax|mobile?|mob|cell(?:phone)?|whatsapp|"
    rb"handy|t\xc3\xa9l(?:\xc3\xa9phone)?|text(?: me)?|hotline|reach (?:me|us)|dial|contact)(?![a-z])"
)
# What is written as a telephone number and is none.
_NOT_CALLED = re.compile(
    rb"(?i)(?<![a-z])(?:isbn(?:-1[03])?|issn|doi|order|invoice|part|serial|model|ticket|case|ref(?:erence)?|item|sku|"
    rb"id|version|no\.|nr\.|number|cas|ean|upc|ssn|tracking|account|acct|batch|lot)[ .:#]{0,3}$"
)


def is_installed() -> bool:
    """Whether the library of numbering plans is there (the extra `privacy`)."""
    return find_spec("phonenumbers") is not None


def check_regions(regions: tuple[str, ...]) -> None:
    """Raise `UserError` where a region has no numbering plan."""
    from phonenumbers import SUPPORTED_REGIONS

    unknown = [region for region in regions if region not in SUPPORTED_REGIONS]
    if unknown:
        raise UserError(
            f"There is no numbering plan of {listed(unknown)}.",
            where="regions",
            hint="Regions are codes of two capital letters: ('US', 'DE').",
        )


def find_phones(document: bytes, start: int, stop: int, regions: tuple[str, ...] = REGIONS) -> Iterator[Find]:
    """Yield numbers that exist in the plan of a country.

    A number with a country's prefix counts anywhere. One of `regions` without it counts where it is written in groups,
    or after a word as "call" or "tel."; bare digits alone do not.
    """
    for match in _INTERNATIONAL.finditer(document, start, stop):
        if found := _valid(match[0], ""):
            yield Find(match.start(), match.end(), f"number of {found}")
    for match in _NATIONAL.finditer(document, start, stop):
        if _DATE.fullmatch(match[0]) or has_context(_NOT_CALLED, document, match.start()):
            continue
        first, text = match.start(), match[0]
        if text.count(b"(") != text.count(b")"):  # of the sentence around it
            first += text.startswith(b"(") and text.count(b"(") > text.count(b")")
            text = document[
                first : match.end() - (text.endswith(b")") and text.count(b"(") < text.count(b")"))
            ]
        if (_is_grouped(text) or has_context(_CALLED, document, first)) and (
            found := _of_regions(text, regions)
        ):
            yield Find(first, first + len(text), f"number of {found}, in groups")
    for match in _BARE.finditer(document, start, stop):
        called = has_context(_CALLED, document, match.start())
        if called and not has_context(_NOT_CALLED, document, match.start()):
            if found := _of_regions(match[0], regions):
                yield Find(match.start(), match.end(), f"number of {found}, after a word that says so")


def _is_grouped(text: bytes) -> bool:
    """Whether a number is written as telephone numbers are: area in brackets or with 0, or three groups of digits."""
    groups = re.findall(rb"\d+", text)
    return text.startswith((b"(", b"0")) or (len(groups) >= 3 and len(groups[-1]) >= 2)


def _of_regions(text: bytes, regions: tuple[str, ...]) -> str:
    return next((found for region in regions if (found := _valid(text, region))), "")


@functools.lru_cache(4096)
def _valid(text: bytes, region: str) -> str:
    """Return the country that a number exists in; "" for none."""
    import phonenumbers

    try:
        number = phonenumbers.parse(text.decode(), region or None)
    except phonenumbers.NumberParseException:
        return ""
    if region:
        return region if phonenumbers.is_valid_number_for_region(number, region) else ""
    if not phonenumbers.is_valid_number(number):
        return ""
    return str(phonenumbers.region_code_for_number(number) or f"+{number.country_code}")


DETECTORS.register("phone")(Detector("phone", DIGITS, find_phones))
