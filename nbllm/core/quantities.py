"""Numbers formatted for people: significant digits, sizes, durations, dates."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

_MOST_DIGITS = 10**21  # whole numbers from here on are written with an exponent
_LONGEST = 1e11  # seconds, some 3,000 years: no duration, but files may say so


def number(value: float, digits: int = 4) -> str:
    """Return `value` with `digits` significant digits; whole numbers keep all of theirs, in groups of three.

    >>> number(2.098765), number(3702144), number(0.0003), number(float("nan")), number(10**400)
    ('2.099', '3,702,144', '0.0003', 'nan', '1e+400')
    """
    if isinstance(value, int) and abs(value) >= _MOST_DIGITS:  # which may be too large for a float
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10**power:.{digits}g}e+{power}"
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if -5 <= magnitude < digits:
        text = f"{value:,.{digits - 1 - magnitude}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if digits <= magnitude < 15:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


def counted(count: int, noun: str) -> str:
    """Return a number of things, with their noun in the singular where there is one.

    >>> counted(2000, "documents"), counted(1, "documents")
    ('2,000 documents', '1 document')
    """
    return f"{count:,} {noun.removesuffix('s') if count == 1 else noun}"


def column(values: Sequence[float | None], gap: str) -> list[str]:
    """Return numbers for a table column, with equal decimals where they are of similar size.

    >>> column([2.294, 3.13, None, 12], "-"), column([0.001, 250], "-")
    (['2.294', '3.130', '-', '12.000'], ['0.001', '250'])
    """
    texts = [gap if value is None else number(value) for value in values]
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    if not decimals or any("e" in text for text in texts):
        return texts
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if max(sizes) > 100 * min(sizes):
        return texts
    return [gap if v is None else f"{v:,.{decimals}f}" for v in values]


def fixed(value: float, digits: int = 4, *, like: float | None = None) -> str:
    """Return `value` with as many decimals as `like` has at `digits` significant digits, trailing zeros kept.

    A value and its interval are read together, so they have the same number of decimals.

    >>> fixed(2.1), fixed(12.04, like=2.098)
    ('2.100', '12.040')
    """
    scale = value if like is None else like
    if not math.isfinite(value) or not math.isfinite(scale) or scale == 0:
        return number(value, digits)
    magnitude = math.floor(math.log10(abs(scale)))
    if not -5 <= magnitude < 15:
        return number(value, digits)
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def size(num_bytes: float) -> str:
    """Return a number of bytes in decimal units.

    >>> size(999), size(14_800_000)
    ('999 B', '14.8 MB')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= 0.9995 * scale:  # three digits of what is just below would be "1e+03"
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{int(num_bytes)} B"


def duration(seconds: float) -> str:
    """Return a number of seconds in the two largest fitting units.

    >>> duration(0.25), duration(75), duration(7260)
    ('0.25 s', '1 min 15 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds > _LONGEST:
        return f"{seconds / 86400:.2g} d"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    whole = round(seconds)
    for large, small, names in (
        (86400, 3600, ("d", "h")),
        (3600, 60, ("h", "min")),
        (60, 1, ("min", "s")),
    ):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {names[0]}" + (f" {rest} {names[1]}" if rest else "")
    return f"{whole} s"


def moment(unix_seconds: float) -> str:
    """Return a point in time as UTC date and minute, as "2026-03-01 14:05 UTC"; "?" for what is no date."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_seconds))
    except (OverflowError, ValueError, OSError):
        return "?"


def iso_minute(text: str) -> str:
    """Return an ISO 8601 time in UTC in the format of `moment`; any other text unchanged."""
    return f"{text[:10]} {text[11:16]} UTC" if text[10:11] == "T" and len(text) >= 16 else text
