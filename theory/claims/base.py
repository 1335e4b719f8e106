"""What a claim is, how its trials are run, and how sets of policies are compared."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.certificate import SLACK, Certificate, Twin, worst
from theory.claims.instances import Drawn
from theory.claims.replay import Replay, load_replay, twin_file
from theory.errors import InputError
from theory.fit import ConvergenceError, EmptySetError
from theory.fit_policy import NoMaximiserError, PolicyFit, check_maximiser
from theory.preferences import PairData, bt_log_likelihood
from theory.soft import kl
from theory.tree import TokenTree

NO_OPTIMUM = (ConvergenceError, EmptySetError, NoMaximiserError)  # a fit that ended nowhere


@dataclass(frozen=True)
class Trial:
    """One random instance: its certificates, and whether the claim said anything there."""

    certificates: tuple[Certificate, ...]
    vacuous: bool = False  # the set of maximisers is empty, or a hypothesis does not hold
    drawn: Drawn | None = None  # what the instance was


@dataclass(frozen=True)
class Broken:
    """One assumption of a claim broken on the smallest instance that shows it, held in a file.

    The file is twins/<claim>/<name>.json; `violation` reads every number from it.
    """

    name: str  # "unscaled"
    assumption: str  # what is broken, in words
    smallest: str  # why nothing smaller shows it
    violation: Callable[[Replay], float]  # nats


@dataclass(frozen=True)
class Claim:
    """One statement of the paper with its check and its broken twins."""

    name: str  # "theorem-2.2"
    source: str  # "Theorem 2.2, proof in App. B.2"
    statement: str  # what is checked, in plain words
    left_out: str  # what the paper's statement or proof leaves out; "" if nothing
    trial: Callable[[np.random.Generator, int], Trial]  # (randomness, index of the trial)
    broken: tuple[Broken, ...]  # one for each assumption
    trials: int  # default number

    def twin(self, name: str) -> Broken:
        """The broken twin of that name. Raises InputError that lists the known ones."""
        for broken in self.broken:
            if broken.name == name:
                return broken
        known = ", ".join(broken.name for broken in self.broken)
        raise InputError(f"{self.name} has no twin {name!r}; known: {known}")


@dataclass(frozen=True)
class ClaimResult:
    """The verdict on one claim."""

    claim: Claim
    trials: int
    nonvacuous: int
    worst: Certificate  # of all trials
    worst_trial: int  # its index: with the seed, all that is needed to run it again
    twins: tuple[Twin, ...]
    drawn: tuple[Drawn, ...] = ()
    seed: int = 0

    @property
    def said_enough(self) -> bool:
        """At least half of the trials were not vacuous."""
        return self.nonvacuous > 0 and 2 * self.nonvacuous >= self.trials

    @property
    def holds(self) -> bool:
        """Every certificate holds, and at least half of the trials were not vacuous."""
        return self.worst.holds and self.said_enough

    @property
    def passes(self) -> bool:
        """The claim holds and every twin misses clearly."""
        return self.holds and bool(self.twins) and all(twin.fails for twin in self.twins)

    def to_json(self, arithmetic: str = "float") -> dict[str, object]:
        """The record of check.json; a number that is not finite becomes null.

        claim, seed, arithmetic and trials are all that is needed to run it again.
        """
        return {
            "claim": self.claim.name,
            "seed": self.seed,
            "arithmetic": arithmetic,
            "statement": self.claim.statement,
            "holds": self.holds,
            "lhs": _finite(self.worst.lhs),
            "rhs": _finite(self.worst.rhs),
            "slack": self.worst.slack,
            "trials": self.trials,
            "nonvacuous": self.nonvacuous,
            "drawn": summary(self.drawn),
            "worst_residual": _finite(self.worst.residual),
            "worst_part": self.worst.part,
            "worst_trial": self.worst_trial,
            "twins": [
                {
                    "name": twin.name,
                    "assumption": twin.assumption,
                    "violation": _finite(twin.violation),
                    "holds": twin.holds,
                }
                for twin in self.twins
            ],
        }


def summary(drawn: tuple[Drawn, ...]) -> dict[str, str | int]:
    """What the trials of a claim drew: ranges of the sizes, counts of the rest. {} if unknown."""
    if not drawn:
        return {}
    sizes = {
        "tokens": [d.vocab for d in drawn],
        "horizon": [d.horizon for d in drawn],
        "prompts": [d.prompts for d in drawn],
    }
    counts = {
        "trees": len(drawn),
        "with EOS": sum(d.eos for d in drawn),
        "with forbidden tokens": sum(d.forbidden for d in drawn),
        **dict(sorted(Counter(d.data for d in drawn if d.data).items())),
    }
    return {**{name: f"{min(x)}-{max(x)}" for name, x in sizes.items()}, **counts}


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def generator(seed: int, claim: str, index: int) -> np.random.Generator:
    """The randomness of one trial: a function of (seed, claim, index of the trial) alone."""
    return np.random.default_rng([seed, zlib.crc32(claim.encode()), index])


def run_claim(
    claim: Claim,
    *,
    trials: int | None = None,
    seed: int = 0,
    on_trial: Callable[[], None] = lambda: None,
) -> ClaimResult:
    """Run the trials and the twins of one claim. Raises InputError for trials < 1 or seed < 0."""
    count = claim.trials if trials is None else trials
    if count < 1:
        raise InputError(f"trials must be at least 1, got {count}")
    return run_trials(claim, range(count), seed=seed, on_trial=on_trial)


def run_trials(
    claim: Claim, indices: Iterable[int], *, seed: int, on_trial: Callable[[], None] = lambda: None
) -> ClaimResult:
    """Run the trials of these indices, and the twins. Raises InputError for seed < 0."""
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}")
    found: list[tuple[Certificate, int]] = []
    drawn: list[Drawn] = []
    nonvacuous = 0
    for index in indices:
        trial = run_trial(claim, index, seed=seed)
        found.append((worst(trial.certificates), index))
        nonvacuous += not trial.vacuous
        drawn += [] if trial.drawn is None else [trial.drawn]
        on_trial()
    certificate, place = max(found, key=lambda pair: pair[0].residual)
    twins = run_twins(claim)
    return ClaimResult(claim, len(found), nonvacuous, certificate, place, twins, tuple(drawn), seed)


def run_trial(claim: Claim, index: int, *, seed: int) -> Trial:
    """One trial. A fit that does not reach its optimum decides nothing, so the trial fails."""
    try:
        return claim.trial(generator(seed, claim.name, index), index)
    except NO_OPTIMUM as error:
        nothing = Certificate(claim.name, math.nan, math.nan, SLACK, f"no optimum: {error}")
        return Trial((nothing,), vacuous=True)


def run_twins(claim: Claim) -> tuple[Twin, ...]:
    """Every broken twin of a claim, from its file."""
    return tuple(
        run_twin(broken, load_replay(twin_file(claim.name, broken.name))) for broken in claim.broken
    )


def run_twin(broken: Broken, replay: Replay) -> Twin:
    """By how much the claim misses on the instance of a file, nats; NaN if a fit has no end."""
    try:
        violation = broken.violation(replay)
    except NO_OPTIMUM:
        violation = math.nan
    return Twin(broken.assumption, violation, broken.name)


# --- comparing policies and sets of policies -----------------------------------------------------


def same(tree: TokenTree, claim: str, part: str, left: np.ndarray, right: np.ndarray):
    """Certificate that two completion distributions (P, L) agree in log-probability, nats.

    Its two sides are the log-probabilities of the completion where they differ most.
    """
    a, b = (np.asarray(x)[:, tree.leaves].reshape(-1) for x in (left, right))
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    place = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    return Certificate(claim, float(a[place]), float(b[place]), SLACK, part)


def stationary(claim: str, part: str, fit: PolicyFit) -> Certificate:
    """Certificate that an optimiser ended where the gradient (per comparison) is 0.

    Without it an optimiser that stalls "keeps" any policy it is started from.
    """
    return Certificate(claim, fit.gradient, 0.0, SLACK, f"{part}: gradient where the fit ended")


def refused(claim: str, part: str, policies: Any, data: PairData) -> Certificate:
    """Certificate that a fit of policies returns none, as the likelihood has no maximiser."""
    try:
        check_maximiser(policies, data)
    except NoMaximiserError:
        return Certificate(claim, 1.0, 1.0, SLACK, part)
    return Certificate(claim, 0.0, 1.0, SLACK, part)


def attains(
    claim: str,
    part: str,
    log_p: np.ndarray,
    data: PairData,
    best: float,
    *,
    beta: float,
    log_ref: np.ndarray | None = None,
) -> Certificate:
    """Certificate that a policy itself, with no optimiser run, has the largest likelihood `best`.

    Eq. 9, or the DPO likelihood if log_ref is given, of log-probabilities (P, L); nats.
    """
    with np.errstate(invalid="ignore"):  # slots that are no completion: -inf - -inf, never read
        local = beta * (np.asarray(log_p) - (0.0 if log_ref is None else log_ref))
    likelihood = bt_log_likelihood(local, data)
    return Certificate(claim, likelihood, best, SLACK, f"{part}: its own likelihood")


def included(
    tree: TokenTree, claim: str, part: str, members: np.ndarray, others: np.ndarray
) -> Certificate:
    """Certificate that each of `members` (K, P, L) is one of `others` (M, P, L).

    The worst member against its nearest counterpart. An empty set on either side never holds.
    """
    if not len(members) or not len(others):
        return Certificate(claim, math.nan, math.nan, SLACK, part)
    nearest = [
        min((same(tree, claim, part, a, b) for b in others), key=lambda c: c.residual)
        for a in members
    ]
    return worst(nearest)


def violation(tree: TokenTree, left: np.ndarray, right: np.ndarray) -> float:
    """How far two sets of completion distributions (K, P, L) are apart, nats.

    The Hausdorff distance with KL in place of a metric: the largest KL from a member of either set
    to its nearest counterpart in the other. Raises ValueError if a set is empty.
    """
    there = max(min(kl(tree, a, b) for b in right) for a in left)
    back = max(min(kl(tree, b, a) for a in left) for b in right)
    return max(there, back)
