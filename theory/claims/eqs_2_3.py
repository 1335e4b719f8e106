"""What Eqs. 2 and 3 optimise, and neither road does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit, logsumexp

from theory.certificate import SLACK, Certificate
from theory.claims.base import Broken, Claim, Trial, same
from theory.claims.instances import (
    FIT_SHAPES,
    Drawn,
    one_step_tree,
    random_beta,
    random_log_p,
    random_tree,
    two_way_pairs,
)
from theory.claims.leafwise import at_most, close
from theory.claims.replay import Replay
from theory.classes import TabularPolicies, chain
from theory.fit import ConvergenceError, fit_tabular
from theory.preferences import PairData, bt_gradient, bt_log_likelihood
from theory.soft import kl, leaf_log_probs, log_optimal, policy_from_leaves, soft_value_iteration
from theory.tree import TokenTree

NAME = "eqs-2-3"
STATEMENT = (
    "Eqs. 2 and 3 ask for the least F(pi) = data term + beta KL(P_pi || P_ref) (Eq. 3: minus the "
    "entropy, that is a uniform reference), the data term being the mean over comparisons of -log "
    "sigmoid(difference of local rewards). Every stationary policy of F has, with KL(x) = KL(P || "
    "P_ref) at the prompt, rho0(x) P(xi) [log P(xi) - log P_ref(xi) - KL(x)] = (1/N) dL/dr(xi), L "
    "the Bradley-Terry log-likelihood. Both roads (RLHF and MLE, or RLHF and DPO) stop where "
    "dL/dr = 0, so their policy is stationary for F only if it is P_ref itself: moved from it "
    "towards P_ref, along P^(1-t) P_ref^t, F falls at the rate beta E_x Var_P[log P / P_ref], "
    "exactly. Two completions, one preferred with frequency .8, beta = 1: both roads give .8, Eq. "
    "3 gives .655."
)
LEFT_OUT = (
    "The paper motivates both roads as ways to solve Eq. 3 (Fig. 2). They are not: the roads take "
    "the data term and the prior one after the other, Eqs. 2 and 3 take them together. The "
    "theorems compare the roads with each other and stand. The paper does not say whether the "
    "local reward in Eq. 2 is log P or log P / P_ref: both are checked, with MLE's and with DPO's "
    "policy. F is not convex, so what is checked holds at every stationary point. On separable "
    "data the roads have no optimum, while F has a stationary point for beta >= 1."
)
FLAT = 1e-11  # relative curvature below which a direction is flat (one shift a prompt)


def trial(rng: np.random.Generator, index: int) -> Trial:
    """Eq. 3; Eq. 2 as printed; Eq. 2 as DPO reads it. Every fourth: data that agree with P_ref.

    There the roads give P_ref and are stationary: such a trial is vacuous. So is one on separable
    data, every eighth, where the roads have no optimum.
    """
    tree = random_tree(rng, FIT_SHAPES[index % len(FIT_SHAPES)])
    beta = float(np.clip(random_beta(rng), 0.2, 5.0))
    data = two_way_pairs(rng, tree, connected=True)
    if index % 8 == 5:
        return _separable(rng, tree, max(beta, 1.0))
    agree = index % 4 == 3
    if agree:  # every preference 1/2: the roads of Eq. 3 give the uniform policy
        data = even(tree, data)
    kind = 0 if agree else index % 3
    flat = flat_log_p(tree)
    log_ref = flat if kind == 0 else random_log_p(rng, tree)
    offset = log_ref if kind == 2 else flat
    joint = Joint(tree, data, log_ref, offset, beta, data.total)
    roads = joint.roads()
    distance = kl(tree, roads, log_ref)
    starts = (roads, random_log_p(rng, tree))
    ends = [joint.descend(start) for start in starts]
    found = [_two_completions(float(rng.uniform(0.55, 0.9))), *_roads(joint, roads)]
    for part, log_p in (("from the roads", ends[0]), ("from a random start", ends[1])):
        found += _stationary(joint, log_p, part)
    found.append(
        at_most(
            NAME,
            "F at its optimum is at most F at the roads",
            np.asarray([joint.value(ends[0])]),
            np.asarray([joint.value(roads)]),
        )
    )
    if agree:
        found.append(same(tree, NAME, "the roads give P_ref where they may", roads, log_ref))
        found += _stationary(joint, roads, "the roads where they give P_ref")
    return Trial(tuple(found), vacuous=distance < 0.01, drawn=Drawn.of(tree, data))


def _separable(rng: np.random.Generator, tree: TokenTree, beta: float) -> Trial:
    """One pair that is always won: the roads have no optimum, F has one for beta >= 1."""
    planted = two_way_pairs(rng, tree, connected=False)
    first = planted.prompt == 0
    seen = np.union1d(planted.winner[first], planted.loser[first])
    winner, loser = (int(leaf) for leaf in np.setdiff1d(tree.leaves, seen)[:2])
    columns = (planted.prompt, planted.winner, planted.loser, planted.count)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    data = PairData.of(tree, [*rows, (0, winner, loser, 1.0)])
    log_ref = random_log_p(rng, tree)
    joint = Joint(tree, data, log_ref, flat_log_p(tree), beta, data.total)
    empty = float(fit_tabular(tree, data).empty)
    found = _stationary(joint, joint.descend(log_ref), "separable data")
    found.append(Certificate(NAME, empty, 1.0, SLACK, "separable data: the roads have no optimum"))
    return Trial(tuple(found), vacuous=True, drawn=Drawn.of(tree, data))


def flat_log_p(tree: TokenTree) -> Float[np.ndarray, "P L"]:
    """log 1/n at every slot: the reference of Eq. 3, up to a constant of F."""
    return np.full((tree.n_prompts, tree.n_leaves), -np.log(len(tree.leaves)))


def even(tree: TokenTree, data: PairData) -> PairData:
    """The same pairs, each won as often as lost."""
    rows = zip(data.prompt, data.winner, data.loser, data.count, strict=True)
    return PairData.of(
        tree,
        [
            (int(x), int(first), int(second), 1.0)
            for x, a, b, _ in rows
            for first, second in ((a, b), (b, a))
        ],
    )


# --- the objective over completions --------------------------------------------------------------


@dataclass(frozen=True)
class Joint:
    """F of Eq. 2 over completion distributions, log P = u - log sum exp u for scores u (P, L).

    The local reward is beta (log P - offset): a flat offset as printed, log_ref as DPO reads it.
    """

    tree: TokenTree
    data: PairData
    log_ref: Float[np.ndarray, "P L"]
    offset: Float[np.ndarray, "P L"]
    beta: float
    divisor: float  # of the data term: the number of comparisons N

    def local(self, log_p: np.ndarray) -> Float[np.ndarray, "P L"]:
        """The local reward, 0 where no completion is."""
        mask = self.tree.leaf_mask
        return self.beta * (np.where(mask, log_p, 0.0) - np.where(mask, self.offset, 0.0))

    def value(self, log_p: np.ndarray) -> float:
        """F, reward units."""
        likelihood = bt_log_likelihood(self.local(log_p), self.data) / self.divisor
        return -likelihood + self.beta * kl(self.tree, log_p, self.log_ref)

    def sides(self, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sides of the fixed point, (P, L): of the prior and of the data. 1/nats."""
        p, surplus = self._surplus(log_p)
        data = bt_gradient(self.local(log_p), self.data) / self.divisor
        return self.tree.rho0[:, None] * p * surplus, data

    def _surplus(self, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P, and log P - log P_ref - KL(x); 0 where no completion is."""
        mask = self.tree.leaf_mask
        p = np.where(mask, np.exp(log_p), 0.0)
        ratio = np.where(mask, log_p, 0.0) - np.where(mask, self.log_ref, 0.0)
        return p, np.where(mask, ratio - (p * ratio).sum(axis=1, keepdims=True), 0.0)

    def curvature(self, log_p: np.ndarray) -> Float[np.ndarray, "N N"]:
        """Hessian of F / beta in the scores, N = P L."""
        tree, size = self.tree, self.tree.n_leaves
        p, surplus = self._surplus(log_p)
        out = np.zeros((tree.n_prompts * size,) * 2)
        for x, weight in enumerate(tree.weights):
            q, s = p[x], surplus[x]
            block = np.diag(q * (s + 1.0)) - q[:, None] * q[None, :] * (
                s[:, None] + s[None, :] + 1.0
            )
            out[x * size : (x + 1) * size, x * size : (x + 1) * size] = weight * block
        data, local = self.data, self.local(log_p)
        margin = local[data.prompt, data.winner] - local[data.prompt, data.loser]
        bend = self.beta * data.count / self.divisor * 0.25 / np.cosh(0.5 * margin) ** 2
        first, second = (data.prompt * size + leaf for leaf in (data.winner, data.loser))
        for at, to, sign in (
            (first, first, 1.0),
            (second, second, 1.0),
            (first, second, -1.0),
            (second, first, -1.0),
        ):
            np.add.at(out, (at, to), sign * bend)
        return out

    def normalised(self, u: np.ndarray) -> Float[np.ndarray, "P L"]:
        """log P of scores (N,) or (P, L)."""
        score = u.reshape(self.tree.n_prompts, self.tree.n_leaves)
        score = np.where(self.tree.leaf_mask, score, -np.inf)
        return score - np.asarray(logsumexp(score, axis=1, keepdims=True))

    def descend(self, log_p: np.ndarray) -> Float[np.ndarray, "P L"]:
        """A stationary point of F: L-BFGS from log_p, then Newton while the gradient falls."""

        def down(u: np.ndarray) -> tuple[float, np.ndarray]:
            prior, data = self.sides(self.normalised(u))
            return self.value(self.normalised(u)) / self.beta, (prior - data).reshape(-1)

        start = np.where(self.tree.leaf_mask, log_p, 0.0).reshape(-1)
        options = {"maxiter": 2000, "ftol": 0.0, "gtol": 1e-8}
        u = minimize(down, start, jac=True, method="L-BFGS-B", options=options).x
        slope = down(u)[1]
        for _ in range(20):
            bends = self.curvature(self.normalised(u))
            trial_u = u - np.linalg.lstsq(bends, slope, rcond=FLAT)[0]
            new = down(trial_u)[1]
            if not np.linalg.norm(new) < np.linalg.norm(slope):
                break
            u, slope = trial_u, new
        return self.normalised(u)

    def roads(self) -> Float[np.ndarray, "P L"]:
        """RLHF's policy: fit a reward, then soft RL (with the reference if DPO's is meant)."""
        optima = fit_tabular(self.tree, self.data)
        r = optima.member(np.zeros(optima.graph.n_components))
        base = self.beta * np.where(self.tree.leaf_mask, self.offset, 0.0)
        solution = soft_value_iteration(self.tree, r + base, beta=self.beta)
        return np.asarray(leaf_log_probs(self.tree, solution.log_policy))


# --- certificates --------------------------------------------------------------------------------


def _stationary(joint: Joint, log_p: np.ndarray, part: str) -> list[Certificate]:
    """The fixed point over completions; the gradient in the logits of tokens, differentiated."""
    policies = TabularPolicies.of(joint.tree)
    theta = policies.logits(policy_from_leaves(joint.tree, log_p))
    slope = np.asarray(_slope(jnp.asarray(theta), policies, _record(joint)))
    return [
        close(NAME, f"{part}: the fixed point", *joint.sides(log_p)),
        close(NAME, f"{part}: gradient in logits", slope, np.zeros_like(slope)),
    ]


def _roads(joint: Joint, roads: np.ndarray) -> list[Certificate]:
    """At the roads' policy the data term is at rest, and F falls at the stated rate."""
    tree = joint.tree
    optima = fit_tabular(tree, joint.data)
    direct = log_optimal(tree, optima.member(np.zeros(optima.graph.n_components)), joint.beta)
    direct = joint.normalised(np.where(tree.leaf_mask, direct + joint.offset, -np.inf))
    data = joint.sides(roads)[1]
    p, surplus = joint._surplus(roads)
    variance = float(np.dot(tree.rho0, (p * surplus**2).sum(axis=1)))
    rate = float(_along(jnp.float64(0.0), *_path(joint, roads), _record(joint)))
    return [
        same(tree, NAME, "the roads' policy, by backups and at once", roads, direct),
        close(NAME, "the roads: gradient of the data term", data, np.zeros_like(data)),
        Certificate(NAME, rate / joint.beta, -variance, SLACK, "the roads: rate towards P_ref"),
    ]


def two_completions(preference: float) -> tuple[float, float]:
    """Eq. 3's log P(a) at beta = 1 if a beats b with this frequency (0.1 to 0.9), two ways.

    By descent on F, and as the root l = log odds of preference - sigmoid(l) = l p (1 - p), which
    falls in l as far as |l| < 2.39, so that the root is the only one.
    """
    tree = one_step_tree("a", "b")
    data = PairData.of(tree, [(0, 0, 1, preference), (0, 1, 0, 1.0 - preference)])
    flat = flat_log_p(tree)
    joint = Joint(tree, data, flat, flat, 1.0, data.total)

    def gap(odds: float) -> float:
        p = float(expit(odds))
        return preference - p - odds * p * (1.0 - p)

    root = float(brentq(gap, -2.3, 2.3, xtol=1e-15))  # pyright: ignore
    return float(joint.descend(joint.roads())[0, 0]), float(log_expit(root))


def _two_completions(preference: float) -> Certificate:
    return Certificate(NAME, *two_completions(preference), SLACK, "two completions, two ways")


def _record(joint: Joint) -> tuple[jax.Array, ...]:
    """The arrays of F for JAX: wins (P, L, L) a comparison, mask, log_ref, offset, rho0, beta."""
    tree, data = joint.tree, joint.data
    wins = np.zeros((tree.n_prompts, tree.n_leaves, tree.n_leaves))
    np.add.at(wins, (data.prompt, data.winner, data.loser), data.count / joint.divisor)
    mask = np.repeat(tree.leaf_mask[None], tree.n_prompts, axis=0)
    tables = [np.where(mask, table, 0.0) for table in (joint.log_ref, joint.offset)]
    arrays = (wins, mask, *tables, tree.rho0, np.float64(joint.beta))
    return tuple(jnp.asarray(array) for array in arrays)


def _path(joint: Joint, log_p: np.ndarray) -> tuple[jax.Array, jax.Array]:
    mask = joint.tree.leaf_mask
    return jnp.asarray(np.where(mask, log_p, 0.0)), jnp.asarray(np.where(mask, joint.log_ref, 0.0))


def _f(log_p: jax.Array, record: tuple[jax.Array, ...]) -> jax.Array:
    """F of log P (P, L), 0 where no completion is: enumerated, differentiable."""
    wins, mask, log_ref, offset, rho0, beta = record
    local = beta * (log_p - offset)
    fit = jnp.sum(wins * jax.nn.log_sigmoid(local[:, :, None] - local[:, None, :]))
    terms = jnp.where(mask, jnp.exp(log_p) * (log_p - log_ref), 0.0)
    return -fit + beta * jnp.dot(rho0, terms.sum(axis=1))


@jax.jit
@partial(jax.grad, argnums=0)
def _slope(theta, policies, record):
    return _f(jnp.where(record[1], chain(policies.log_policy(theta)), 0.0), record)


@jax.jit
@partial(jax.grad, argnums=0)
def _along(t, log_p, log_ref, record):
    score = jnp.where(record[1], (1.0 - t) * log_p + t * log_ref, -jnp.inf)
    moved = score - jax.nn.logsumexp(score, axis=1, keepdims=True)
    return _f(jnp.where(record[1], moved, 0.0), record)


# --- broken twins --------------------------------------------------------------------------------


def _of(replay: Replay, *, relative: bool = False, divisor: float | None = None) -> Joint:
    """F on the instance of a file; Eq. 3 if it has no reference."""
    tree, data = replay.tree, replay.data
    flat = flat_log_p(tree)
    log_ref = flat if replay.instance.log_ref is None else replay.instance.log_ref
    offset = log_ref if relative else flat
    return Joint(tree, data, log_ref, offset, replay.beta, divisor or data.total)


def _apart(joint: Joint) -> float:
    """KL(the roads' policy || the policy that F asks for), nats; NaN if the descent has no end."""
    roads = joint.roads()
    return kl(joint.tree, roads, _end(joint, roads))


def _end(joint: Joint, start: np.ndarray) -> np.ndarray:
    """Where the descent from `start` comes to rest. Raises ConvergenceError if it does not."""
    log_p = joint.descend(start)
    prior, data = joint.sides(log_p)
    left = float(np.abs(prior - data).max())
    if not left <= SLACK:
        raise ConvergenceError(f"descent on F leaves a gradient of {left:.1e}")
    return log_p


def _one_after_the_other(replay: Replay) -> float:
    return _apart(_of(replay))


def _dpo_for_eq_2(replay: Replay) -> float:
    return _apart(_of(replay, relative=True))


def _summed(replay: Replay) -> float:
    """KL between the optima of F with the data term divided by numbers.divisor, and by N."""
    joint = _of(replay)
    other = _of(replay, divisor=replay.positive("divisor"))
    start = flat_log_p(joint.tree)  # no road: with every label alike they have no optimum, F has
    return kl(joint.tree, _end(other, start), _end(joint, start))


BROKEN = (
    Broken(
        "one-after-the-other",
        "the roads' policy is taken for the optimum of Eq. 3: .8 for .655",
        "Two completions: with one, every policy is 1.",
        _one_after_the_other,
    ),
    Broken(
        "dpo-for-eq-2",
        "DPO's policy is taken for the optimum of Eq. 2 with its reference",
        "Two completions: with one, every policy is 1.",
        _dpo_for_eq_2,
    ),
    Broken(
        "summed",
        "the data term is a sum over comparisons (numbers.divisor = 1), not their mean",
        "Two comparisons of two completions, won by the same one: of one, sum and mean are the "
        "same; won once each, both optima are the reference.",
        _summed,
    ),
)

CLAIM = Claim(NAME, "Eqs. 2 and 3, Fig. 2", STATEMENT, LEFT_OUT, trial, BROKEN, trials=12)
