"""Sizes of trees in words, however large: a count is never formed where it is astronomical."""

from __future__ import annotations

import math

EXACT_DIGITS = 18  # counts below 10**18 are written out
SCALE = 10**9


def digits_of_power(base: int, exponent: int, factor: float = 1.0) -> int:
    """log10(factor * base**exponent), rounded; whole-number arithmetic, so nothing overflows."""
    logs = exponent * round(math.log10(base) * SCALE) + round(math.log10(factor) * SCALE)
    return (logs + SCALE // 2) // SCALE


def power_in_words(base: int, exponent: int, factor: int = 1) -> str:
    """factor * base**exponent: '1,024', or 'about 10^k' from 10^18 on."""
    digits = digits_of_power(base, exponent, factor)
    if digits < EXACT_DIGITS:
        return f"{factor * base**exponent:,}"
    return f"about 10^{digits}"
