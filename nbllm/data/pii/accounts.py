"""Payment cards and international bank account numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nbllm.data.kernels.candidates import DIGITS
from nbllm.data.pii.check_digits import luhn, mod_97
from nbllm.data.pii.detector import DETECTORS, Detector, Find

# Issuers: first numbers, from and to, and lengths. Source: ISO/IEC 7812; the issuers' published ranges.
_ISSUERS = (
    ("Visa", 4, 4, (13, 16, 19)),
    ("Mastercard", 51, 55, (16,)),
    ("Mastercard", 2221, 2720, (16,)),
    ("American Express", 34, 34, (15,)),
    ("American Express", 37, 37, (15,)),
    ("Discover", 6011, 6011, (16, 19)),
    ("Discover", 644, 649, (16, 19)),
    ("Discover", 65, 65, (16, 19)),
    ("Diners Club", 300, 305, (14,)),
    ("Diners Club", 36, 36, (14,)),
    ("Diners Club", 38, 39, (14,)),
    ("JCB", 3528, 3589, (16,)),
    ("UnionPay", 62, 62, (16, 17, 18, 19)),
    ("Maestro", 5018, 5018, (16,)),
    ("Maestro", 5020, 5020, (16,)),
    ("Maestro", 5038, 5038, (16,)),
    ("Maestro", 6759, 6763, (16,)),
    ("Mir", 2200, 2204, (16,)),
)
# Digits without a break, or in groups as they stand on cards: 4-4-4-4(-3), 4-6-5, 4-6-4.
_CARD = re.compile(
    rb"(?<![\w.,+-])(?<!\d[ -])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})"
    rb"(?![ -]?\d|[.,]\d|\w)"
)

# Lengths by country. Source: SWIFT, IBAN Registry (ISO 13616-2), release 99.
_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD FK",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK MN",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM BI DJ",
        28: "AL AZ BY CY DO GT HU LB NI PL SV HN",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
_LONGEST = max(_LENGTHS.values())
_IBAN = re.compile(
    rb"(?<![A-Za-z0-9])([A-Z]{2})\d{2}(?= ?[A-Z0-9])"
)  # its country's length says where it ends


def find_cards(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield the numbers of payment cards: of an issuer's range and length, with Luhn's check digit."""
    for match in _CARD.finditer(document, start, stop):
        digits = match[0].replace(b" ", b"").replace(b"-", b"").decode()
        issuer = _issuer(digits)
        if issuer and luhn(digits):
            yield Find(match.start(), match.end(), f"Luhn, range of {issuer}")


def _issuer(digits: str) -> str:
    for name, low, high, lengths in _ISSUERS:
        if len(digits) in lengths and low <= int(digits[: len(str(low))]) <= high:
            return name
    return ""


def find_ibans(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield bank account numbers: as long as their country's are, no character more, with check digits modulo 97."""
    for match in _IBAN.finditer(document, start, stop):
        country = match[1].decode()
        end = _end_of(document, match.start(), _LENGTHS.get(country, _LONGEST + 1))
        if end is None:
            continue
        number = document[match.start() : end].replace(b" ", b"").decode()
        if mod_97(number[4:] + number[:4]):
            yield Find(match.start(), end, f"mod 97, {len(number)} characters of {country}")


def _end_of(document: bytes, start: int, length: int) -> int | None:
    """Return where a number of so many characters ends, without spaces or in groups of four; None where it does not."""
    if length > _LONGEST:
        return None
    grouped = document[start + 4 : start + 5] == b" "
    end = start + length + ((length - 1) // 4 if grouped else 0)
    text = document[start:end]
    if len(text) < end - start or document[end : end + 1].isalnum():
        return None
    groups = text.split(b" ")
    if any(not group.isalnum() or group != group.upper() or not group.isascii() for group in groups):
        return None
    if grouped and any(len(group) != 4 for group in groups[:-1]):
        return None
    return end if grouped or len(groups) == 1 else None


DETECTORS.register("iban")(Detector("iban", DIGITS, find_ibans))
DETECTORS.register("card")(Detector("card", DIGITS, find_cards))
