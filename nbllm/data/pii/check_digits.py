"""Check digits: what a number must fulfil to be one of its kind.

A random number passes Luhn's check one time in 10 and "mod 97" about one time in 97: none is a proof alone.
"""

from __future__ import annotations

from collections.abc import Sequence

# Verhoeff's tables: the multiplication of the dihedral group D5, and the permutation that is applied by position.
_D5 = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_PERMUTED = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def luhn(digits: str) -> bool:
    """Whether the last digit is Luhn's check digit of the others.

    Source: Luhn 1960, US patent 2,950,048; ISO/IEC 7812-1, annex B.
    """
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        total += digit if place % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit)
    return total % 10 == 0


def verhoeff(digits: str) -> bool:
    """Whether the last digit is Verhoeff's check digit of the others.

    Source: Verhoeff 1969, "Error Detecting Decimal Codes".
    """
    check = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        check = int(_D5[check][int(_PERMUTED[place % 8][digit])])
    return check == 0


def mod_97(characters: str) -> bool:
    """Whether digits and capital letters (A is 10, ... Z is 35), read as one number, leave 1 when divided by 97.

    Source: ISO/IEC 7064, MOD 97-10.
    """
    return int("".join(str(int(character, 36)) for character in characters)) % 97 == 1


def mod_11_10(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7064, MOD 11,10, of the others."""
    product = 10
    for digit in map(int, digits[:-1]):
        product = 2 * ((digit + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(digits[-1])


def weighted(digits: str, weights: Sequence[int]) -> int:
    """Return the sum of digits times weights."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))
