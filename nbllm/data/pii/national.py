"""Numbers that states give to people: identity, tax and social security numbers."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterator

from nbllm.data.kernels.candidates import DIGITS
from nbllm.data.pii.check_digits import luhn, mod_11_10, verhoeff, weighted
from nbllm.data.pii.detector import DETECTORS, Detector, Find, has_context


@dataclasses.dataclass(frozen=True)
class National:
    """The numbers of one country.

    Attributes:
        country: Its code of two letters.
        name: What the number is called there.
        pattern: How it is written; it begins and ends at the border of a word.
        check: Whether digits and capital letters, all others left out, are such a number.
        told: How it is written where its form tells it from other numbers; others count only after one of `words`.
        words: What stands before it; None where form and check digits are proof enough.
    """

    country: str
    name: str
    pattern: re.Pattern[bytes]
    check: Callable[[str], bool]
    told: re.Pattern[bytes] | None = None
    words: re.Pattern[bytes] | None = None


def find_national(document: bytes, start: int, stop: int) -> Iterator[Find]:
    """Yield the numbers of `NATIONAL` whose check digits, dates and ranges hold."""
    for national in NATIONAL:
        for match in national.pattern.finditer(document, start, stop):
            number = _SEPARATORS.sub(b"", match[0]).decode().upper()
            if not national.check(number):
                continue
            told = national.words is None or (national.told is not None and national.told.fullmatch(match[0]))
            if told or has_context(national.words, document, match.start()):  # type: ignore[arg-type]
                yield Find(match.start(), match.end(), f"{national.name} of {national.country}")


_SEPARATORS = re.compile(rb"[ .\-+/]")


def _pattern(body: str, *, alone: bool = False) -> re.Pattern[bytes]:
    """Return an expression between borders of words; `alone`: in no row of numbers, such as a table's."""
    before, after = (rb"(?<!\d )", rb" ") if alone else (b"", b"")
    return re.compile(
        rb"(?<![\w.,/+-])" + before + rb"(?:" + body.encode() + rb")(?![\w]|[" + after + rb",./-]\d)"
    )


def _words(body: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?i)(?<![a-z])(?:" + body.encode() + rb")(?![a-z])")


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        return datetime.date(year, month, day) <= datetime.date.today()
    except ValueError:
        return False


def _short_date(digits: str) -> bool:
    """Whether six digits are year, month and day of some century; the day may be 60 more (coordination numbers)."""
    day = int(digits[4:6])
    return any(_is_date(c + int(digits[:2]), int(digits[2:4]), day % 60 or 60) for c in (1900, 2000))


def _ssn(number: str) -> bool:
    area = int(number[:3])
    return area not in (0, 666) and area < 900 and number[3:5] != "00" and number[5:] != "0000"


def _nino(number: str) -> bool:
    prefix = number[:2]
    letters = not set(prefix) & set("DFIQUV") and prefix[1] != "O"
    return letters and prefix not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")


def _dni(number: str) -> bool:
    digits = number[:-1].replace("X", "0", 1).replace("Y", "1", 1).replace("Z", "2", 1)
    return number[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23]


_CF_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16,
         10, 22, 25, 24, 23),
        strict=True,
    )
)  # fmt: skip


def _codice_fiscale(number: str) -> bool:
    even = sum(int(c) if c.isdigit() else ord(c) - ord("A") for c in number[1:15:2])
    return chr(ord("A") + (even + sum(_CF_ODD[c] for c in number[0:15:2])) % 26) == number[15]


def _nir(number: str) -> bool:
    body = number[:13].replace("2A", "19").replace("2B", "18")
    month = int(number[3:5])
    return body.isdigit() and (1 <= month <= 12 or 20 <= month <= 42 or month >= 50) and (
        97 - int(body) % 97 == int(number[13:])
    )  # fmt: skip


def _steuer_id(number: str) -> bool:
    counts = sorted(number[:10].count(digit) for digit in set(number[:10]))
    return number[0] != "0" and counts[-1] in (2, 3) and counts[-2] == 1 and mod_11_10(number)


def _bsn(number: str) -> bool:
    return number != "000000000" and weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _pesel(number: str) -> bool:
    year, month, day = int(number[:2]), int(number[2:4]), int(number[4:6])
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[month // 20]
    checked = weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    return checked and _is_date(century + year, month % 20, day)


def _cpf(number: str) -> bool:
    if len(set(number)) == 1:
        return False
    checks = (weighted(number[:n], range(n + 1, 1, -1)) * 10 % 11 % 10 for n in (9, 10))
    return "".join(map(str, checks)) == number[9:]


def _aadhaar(number: str) -> bool:
    return number != number[::-1] and verhoeff(number)


def _resident(number: str) -> bool:
    total = weighted(number[:17], [2**place % 11 for place in range(17, 0, -1)])
    date = _is_date(int(number[6:10]), int(number[10:12]), int(number[12:14])) and int(number[6:10]) >= 1850
    return date and "10X98765432"[total % 11] == number[17]


def _personnummer(number: str) -> bool:
    return _short_date(number[-10:-4]) and luhn(number[-10:])


def _hetu(number: str) -> bool:
    checked = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number[:6] + number[-4:-1]) % 31] == number[-1]
    return checked and _short_date(number[4:6] + number[2:4] + number[:2]) and number[-4:-1] > "001"


_FORM = re.compile
NATIONAL = (
    National("US", "Social Security number", _pattern(r"\d{3}([- ]?)\d{2}\1\d{4}"), _ssn,
             _FORM(rb"\d{3}-\d{2}-\d{4}"), _words("ssn|social security(?: number| no)?")),
    National("GB", "National Insurance number", _pattern(r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]"), _nino,
             _FORM(rb"[A-Z]{2} \d{2} \d{2} \d{2} [A-D]"), _words("nino?|national insurance(?: number| no)?")),
    National("ES", "DNI or NIE", _pattern(r"(?:\d{8}|[XYZ]-?\d{7})-?[A-Z]"), _dni),
    National("IT", "codice fiscale",
             _pattern(r"[A-Z]{6}[0-9LMNP-V]{2}[ABCDEHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]"), _codice_fiscale),
    National("FR", "NIR",
             _pattern(r"[12]([ .]?)\d{2}\1\d{2}\1(?:\d{2}|2[AB])\1\d{3}\1\d{3}[ .]?\d{2}", alone=True), _nir),
    National("DE", "Steuer-ID", _pattern(r"\d{2}([ /]?)\d{3}\1\d{3}\1\d{3}", alone=True), _steuer_id,
             _FORM(rb"\d{2} \d{3} \d{3} \d{3}"),
             _words("steuer-?id(?:nr|entifikationsnummer)?\\.?|steuer(?:liche)? ?identifikationsnummer|idnr\\.?|tin")),
    National("NL", "BSN", _pattern(r"\d{4}[. ]?\d{2}[. ]?\d{3}", alone=True), _bsn, None,
             _words("bsn|burgerservicenummer|sofinummer")),
    National("PL", "PESEL", _pattern(r"\d{11}"), _pesel),
    National("BR", "CPF", _pattern(r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}"), _cpf, _FORM(rb"\d{3}\.\d{3}\.\d{3}-\d{2}"),
             _words("cpf")),
    National("IN", "Aadhaar", _pattern(r"[2-9]\d{3}([ -]?)\d{4}\1\d{4}", alone=True), _aadhaar,
             _FORM(rb"\d{4} \d{4} \d{4}"), _words("aadhaa?r|uidai|uid")),
    National("CN", "resident identity number", _pattern(r"[1-8]\d{16}[0-9Xx]"), _resident),
    National("SE", "personnummer", _pattern(r"(?:\d{2})?\d{6}[-+]?\d{4}"), _personnummer,
             _FORM(rb"(?:\d{2})?\d{6}[-+]\d{4}"), _words("person(?:nummer|nr\\.?)|pnr")),
    National("FI", "henkilotunnus", _pattern(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]"), _hetu),
)  # fmt: skip

DETECTORS.register("national_id")(Detector("national_id", DIGITS, find_national))
