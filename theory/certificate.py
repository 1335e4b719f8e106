"""Evidence instead of a bare bool: two sides of a statement, and the slack between them.

Where the slack comes from (u = 2**-53, the unit roundoff; depth H, V tokens, M the largest
|r| / beta or |log P| met, in nats):

1. One backup of soft value iteration takes a maximum (exact), V subtractions, a division, V exps, a
   sum and a log: at most (V + 6) u M. H levels: H (V + 6) u M. The same holds for a chain of H
   conditional log-probabilities, and for logsumexp over the leaves at once.
2. An expectation multiplies each log-probability by a probability that carries the relative error
   of (1); the sums are math.fsum or pairwise, so their own error is below that of their terms.
   Together: at most 3 H (V + 6) u M for one side, twice that for two sides.
3. A Bradley-Terry maximiser found by Newton carries the error (gradient left over) / (smallest
   curvature c on the identified directions, summed over the n comparisons, reward units). Rounding
   leaves a gradient of about 8 n u. A policy is fitted in log P = r / beta, where the gradient is
   beta times as large and the curvature beta^2 times: its error is 8 n u / (c beta) nats.
   Planted pairs are hubs with chains of at most 2 pairs, each with 1 to 5 wins each way: a pair has
   curvature a b / (a + b) >= 1/2 at the maximiser. Without its hub such a graph has no eigenvalue
   below 2 - 2 cos(pi / 5) = 0.38, so by interlacing no other positive one with it: c >= 0.19. With
   at most 78 pairs n <= 780; with beta >= 0.1 the error is below 3.7e-11.

With H <= 6, V <= 6 and M <= 500 bound (2) is below 2e-11 (`rounding_bound`), bound (3) for planted
pairs below 3.7e-11 (`fit_bound`), their sum below 6e-11. SLACK is above that and fixed here. It is
no bound in advance where c is not bounded: pairs that are not planted, features drawn at random
(theorem 3.1) and bigram policies (2.2 (c)). There a fit that is too ill-conditioned for SLACK makes
a claim fail; it cannot make one pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SLACK = 1e-10  # nats; every certificate of this package
MIN_VIOLATION = 0.01  # nats; a broken twin must miss by at least this much
UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Certificate:
    """Two numbers that a claim says are equal. NaN never holds."""

    claim: str  # "theorem-2.2"
    lhs: float
    rhs: float
    slack: float = SLACK  # derived rounding bound, fixed before looking
    part: str = ""  # which part of the claim: "(b) every MLE policy is an RLHF policy"

    @property
    def residual(self) -> float:
        """|lhs - rhs|; inf if either side is NaN or both are infinite."""
        gap = abs(self.lhs - self.rhs)
        return gap if gap == gap else float("inf")

    @property
    def holds(self) -> bool:
        return self.residual <= self.slack


@dataclass(frozen=True)
class Twin:
    """The same claim with one assumption broken; it must miss by at least MIN_VIOLATION."""

    assumption: str  # what was broken, in words
    violation: float  # nats
    name: str = ""  # "unscaled": its file is theory/claims/twins/<claim>/<name>.json

    @property
    def holds(self) -> bool:
        """Whether the claim held on the broken instance (it must not).

        A miss below MIN_VIOLATION, or NaN, is no clear miss: the check does not tell it from a
        claim that holds.
        """
        return not self.fails

    @property
    def fails(self) -> bool:
        """Whether it missed clearly: by MIN_VIOLATION or more."""
        return self.violation >= MIN_VIOLATION


def worst(certificates: Iterable[Certificate]) -> Certificate:
    """The certificate with the largest residual. Raises ValueError if there is none."""
    return max(certificates, key=lambda certificate: certificate.residual)


def rounding_bound(*, horizon: int, vocab: int, scale: float) -> float:
    """Bound (2) above for both sides together, in the unit of `scale` (the largest |r|/beta)."""
    return 6.0 * horizon * (vocab + 6) * UNIT_ROUNDOFF * scale


def fit_bound(*, comparisons: float, curvature: float, beta: float) -> float:
    """Bound (3) above, nats; curvature: the smallest one that is not flat, reward units."""
    return 8.0 * comparisons * UNIT_ROUNDOFF / (curvature * beta)
