"""Sums of logarithms of whole numbers with fractional weights: their sign is decided exactly.

A KL divergence between two distributions of fractions is such a sum, and so is a soft return; no
number of digits alone could ever tell that two of them are equal.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import lru_cache

from theory.errors import InputError

DIGITS = 30  # of the first attempt at a sign
MAX_WORK = 2**28  # numbers times bits of a sum that is shown to be 0: seconds, 10 at most


@dataclass(frozen=True)
class LogSum:
    """sum_k c_k log n_k for whole numbers n_k > 1 and fractions c_k: its order is exact.

    The sum is 0 exactly if it is 0 on a base of pairwise coprime numbers, whose logarithms are
    linearly independent over the fractions. If it is not 0, enough digits show its sign. Raises
    InputError where the first digits leave the sign open and the base would take too long: more
    than MAX_WORK, the number of its n_k times their bits together.
    """

    terms: dict[int, Fraction]

    @classmethod
    def of(cls, pairs: Iterable[tuple[Fraction, Fraction]]) -> LogSum:
        """sum c log q over pairs (c, q), q > 0. Raises ValueError for any other q."""
        terms: dict[int, Fraction] = {}
        for c, q in pairs:
            if q <= 0:
                raise ValueError(f"no logarithm of {q}")
            for n, signed in ((q.numerator, c), (q.denominator, -c)):
                if n > 1:
                    terms[n] = terms.get(n, Fraction(0)) + signed
        return cls({n: c for n, c in terms.items() if c})

    def __sub__(self, other: LogSum) -> LogSum:
        terms = dict(self.terms)
        for n, c in other.terms.items():
            terms[n] = terms.get(n, Fraction(0)) - c
        return LogSum({n: c for n, c in terms.items() if c})

    def __lt__(self, other: LogSum) -> bool:
        return (self - other).sign() < 0

    def sign(self) -> int:
        """-1, 0 or 1, exactly."""
        value, error = self._evaluate(DIGITS)
        if abs(value) <= error and self._is_zero():
            return 0
        digits = DIGITS
        while abs(value) <= error:
            digits *= 2
            value, error = self._evaluate(digits)
        return 1 if value > 0 else -1

    def __float__(self) -> float:
        """The nearest float, up to its last digit."""
        if self.sign() == 0:
            return 0.0
        digits = DIGITS
        value, error = self._evaluate(digits)
        while error > abs(value) * Decimal("1e-17"):
            digits *= 2
            value, error = self._evaluate(digits)
        return float(value)

    def _evaluate(self, digits: int) -> tuple[Decimal, Decimal]:
        """The sum and a bound of its error: 3 roundings a term, and one for each partial sum."""
        context = _context(digits)
        total = size = Decimal(0)
        for n, c in self.terms.items():
            scaled = context.multiply(Decimal(c.numerator), _log(n, digits))
            term = context.divide(scaled, Decimal(c.denominator))
            total, size = context.add(total, term), context.add(size, abs(term))
        unit = Decimal(10) ** (1 - digits)
        return total, size * unit * (len(self.terms) + 4)

    def _is_zero(self) -> bool:
        size, bits = len(self.terms), sum(n.bit_length() for n in self.terms)
        if size * bits > MAX_WORK:
            raise InputError(
                f"a sum of logarithms of {size:,} whole numbers with {bits:,} bits together is too "
                f"long to be told from 0: {size * bits:,} (numbers times bits) is over {MAX_WORK:,}"
            )
        left = list(self.terms.items())
        for factor in coprime_base(self.terms):
            exponent, rest = Fraction(0), []
            for n, c in left:
                while n % factor == 0:
                    n, exponent = n // factor, exponent + c
                if n > 1:
                    rest.append((n, c))
            if exponent:
                return False
            left = rest
        return True


@lru_cache(maxsize=2)
def _context(digits: int) -> Context:
    return Context(prec=digits, rounding=ROUND_HALF_EVEN, Emin=MIN_EMIN, Emax=MAX_EMAX)


@lru_cache(maxsize=65536)
def _log(n: int, digits: int) -> Decimal:
    """log n, correctly rounded to `digits` digits."""
    return _context(digits).ln(Decimal(n))


def coprime_base(numbers: Iterable[int]) -> list[int]:
    """Pairwise coprime numbers > 1 of which each of `numbers` (> 1) is a product of powers."""
    base: list[int] = []
    queue = deque(numbers)
    while queue:
        n = queue.pop()
        if n == 1:
            continue
        for i, b in enumerate(base):
            common = math.gcd(n, b)
            if common > 1:
                del base[i]
                queue.extend((common, n // common, b // common))
                break
        else:
            base.append(n)
    return base
