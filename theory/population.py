"""Iterated online DPO in population: exact data, exact gradients, and no optimum to speak of.

One iteration: the generating policy is sampled at temperature tau, K completions a prompt; best and
worst by a utility make a pair; the DPO loss of these pairs is lowered from the generating policy,
which is also the reference. Policy and reference logits are divided by tau before the softmax
(the paper's Table 3). Best beats worst and never the other way round, so the comparison graph has
no cycle and the loss has no minimiser, not even in population. What an iteration does must
therefore be stated: a number of gradient steps, or a ridge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.classes import TabularPolicies, chain
from theory.errors import InputError, require_positive
from theory.fit import ConvergenceError
from theory.fit_policy import maximise
from theory.operators import PairDistribution, best_worst_of_k, temper, temper_level
from theory.preferences import PairData
from theory.soft import Policy, check_levels, expected_reward, kl, leaf_log_probs
from theory.tree import TokenTree

STATIONARY = 1e-10  # gradient that a ridge optimum may leave, in units of 1 + beta / tau + ridge


@dataclass(frozen=True)
class GradientSteps:
    """Plain gradient descent on the logits, from the generating policy."""

    steps: int
    rate: float  # squared logits a nat

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 0:
            raise InputError(f"steps must be a whole number >= 0, got {self.steps!r}")
        require_positive(self, "rate")


@dataclass(frozen=True)
class Ridge:
    """Minimise loss + 0.5 strength |theta - theta_generator|^2 over the logits theta.

    The penalty makes a minimiser exist. At horizon 1 the objective is convex and the minimiser is
    one point; on deeper trees it need not be convex, and what is returned is the stationary point
    that descent from the generating policy reaches.
    """

    strength: float  # nats a squared logit

    def __post_init__(self) -> None:
        require_positive(self, "strength")


@dataclass(frozen=True)
class OnlineDpo:
    """The setting of online DPO. The paper: k = 25, tau = 0.1, beta = 0.05 (App. C.3)."""

    k: int  # completions drawn for a pair
    tau: float  # sampling temperature, and what logits are divided by in the loss
    beta: float  # KL weight of DPO
    update: GradientSteps | Ridge

    def __post_init__(self) -> None:
        if self.k < 2:
            raise InputError(f"k must be >= 2, got {self.k!r}")
        require_positive(self, "tau", "beta")


@dataclass(frozen=True)
class Iteration:
    """The policy after one iteration, and what was measured on the way."""

    log_policy: Policy
    log_p: Float[np.ndarray, "P L"]  # of every completion, untempered, nats
    no_pair: Float[np.ndarray, " P"]  # chance that all K draws tied: they add nothing to the loss
    loss: float  # at log_policy, without the ridge; at the generator it is log 2 a pair
    gradient: float  # norm of the gradient of what was minimised, at log_policy
    utility: float  # expected utility, untempered
    kl_from_start: float  # KL(P || P of the first generating policy), untempered, nats


def online_dpo(
    tree: TokenTree,
    log_policy: Policy,
    utility: Float[AnyArray, "P L"],
    setting: OnlineDpo,
    *,
    iterations: int,
    report: Callable[[int], object] = lambda done: None,
) -> list[Iteration]:
    """`iterations` rounds; each policy generates the data, and is the reference, of the next.

    log_policy: the first generating policy, > 0 on every allowed token. utility: (P, L), what best
    and worst are judged by; only its order matters. report(n) is called as n rounds are done.
    Raises InputError for a bad policy, utility or setting; ConvergenceError as in
    `online_dpo_step`.
    """
    if iterations < 1:
        raise InputError(f"iterations must be >= 1, got {iterations!r}")
    start, rounds = np.asarray(leaf_log_probs(tree, log_policy)), []
    for i in range(iterations):
        rounds.append(online_dpo_step(tree, log_policy, utility, setting, start=start))
        log_policy = rounds[-1].log_policy
        report(i + 1)
    return rounds


def online_dpo_step(
    tree: TokenTree,
    log_policy: Policy,
    utility: Float[AnyArray, "P L"],
    setting: OnlineDpo,
    *,
    start: Float[np.ndarray, "P L"] | None = None,
) -> Iteration:
    """One iteration from the generating policy. start: what `kl_from_start` is measured from.

    A prompt whose K draws tie makes no pair and adds nothing to the loss (the loss is an
    expectation over all prompts, not over the pairs that were made); `no_pair` counts them.
    Raises InputError if the gradient is not finite before any step (tau or beta is too extreme for
    float64); ConvergenceError if steps lead to logits that are not finite, and, with a ridge, if
    the gradient left is not 0 to rounding.
    """
    policies, theta = TabularPolicies.of(tree), _logits(tree, log_policy)
    tempered = leaf_log_probs(tree, temper(tree, log_policy, setting.tau))
    pairs = best_worst_of_k(tree, tempered, utility, setting.k)
    strength = setting.update.strength if isinstance(setting.update, Ridge) else 0.0
    arguments = (
        policies,
        jnp.asarray(tree.rho0[:, None, None] * pairs.joint),
        jnp.where(tree.leaf_mask[None], tempered, 0.0),
        jnp.float64(setting.tau),
        jnp.float64(setting.beta),
        jnp.asarray(theta),
        jnp.float64(strength),
    )
    if not math.isfinite(_measured(theta, arguments)[1]):
        raise InputError(
            f"tau {setting.tau!r} and beta {setting.beta!r}: the gradient at the generating policy "
            f"leaves float64"
        )
    if isinstance(setting.update, Ridge):
        theta = _to_the_ridge(theta, arguments, setting)
    else:
        theta = np.asarray(_descend(theta, arguments, setting.update.steps, setting.update.rate))
    loss, slope = _measured(theta, arguments)
    if not (np.isfinite(theta).all() and math.isfinite(slope)):
        raise ConvergenceError(
            f"the gradient was finite at the generating policy, and the logits or their gradient "
            f"are no longer finite after {setting.update}: the steps are too large"
        )
    after = list(_levels(policies, jnp.asarray(theta)))
    log_p = np.asarray(leaf_log_probs(tree, after))
    return Iteration(
        log_policy=after,
        log_p=log_p,
        no_pair=pairs.no_pair,
        loss=loss,
        gradient=slope,
        utility=expected_reward(tree, log_p, utility),
        kl_from_start=kl(tree, log_p, leaf_log_probs(tree, log_policy) if start is None else start),
    )


def population_pairs(tree: TokenTree, pairs: PairDistribution) -> PairData:
    """The pairs as data with fractional counts, rho0(x) times the chance of (best, worst)."""
    mass = tree.rho0[:, None, None] * pairs.joint
    prompt, winner, loser = np.nonzero(mass)
    return PairData(prompt, winner, loser, mass[prompt, winner, loser])


def online_dpo_loss(
    tree: TokenTree,
    log_policy: Policy,
    log_reference: Policy,
    pairs: PairDistribution,
    *,
    tau: float,
    beta: float,
) -> float:
    """-E log sigmoid(beta (log of P_tau / Pref_tau at the best - the same at the worst)), nats.

    P_tau: completion distribution of the policy tempered by tau token by token, and so the
    reference's. The expectation is over prompts and draws; draws without a pair add 0.
    """
    ratio = leaf_log_probs(tree, temper(tree, log_policy, tau))
    reference = leaf_log_probs(tree, temper(tree, log_reference, tau))
    ratio = jnp.where(tree.leaf_mask[None], ratio - reference, 0.0)
    return -float(_pair_gain(ratio, tree.rho0[:, None, None] * pairs.joint, jnp.float64(beta)))


# --- the objective and its two treatments --------------------------------------------------------


def _gain(theta, policies, mass, reference, tau, beta, origin, strength):
    """-(loss + ridge) of logits theta: what an iteration raises."""
    levels = tuple(temper_level(level, tau) for level in policies.log_policy(theta))
    ratio = jnp.where(policies.allowed[-1].reshape(1, -1), chain(levels), 0.0) - reference
    return _pair_gain(ratio, mass, beta) - 0.5 * strength * jnp.sum((theta - origin) ** 2)


def _pair_gain(ratio, mass, beta):
    margin = beta * (ratio[:, :, None] - ratio[:, None, :])
    return jnp.sum(mass * jax.nn.log_sigmoid(margin))


def _measured(theta: np.ndarray, arguments: tuple) -> tuple[float, float]:
    """The loss without the ridge, and the norm of the gradient with it."""
    loss, slope = _loss_and_slope(jnp.asarray(theta), arguments)
    return float(loss), float(slope)


@jax.jit
def _loss_and_slope(theta, arguments):
    policies, mass, reference, tau, beta, origin, _ = arguments
    loss = -_gain(theta, policies, mass, reference, tau, beta, origin, jnp.zeros(()))
    return loss, jnp.linalg.norm(jax.grad(_gain)(theta, *arguments))


@jax.jit
def _levels(policies, theta):
    return policies.log_policy(theta)


@jax.jit
def _descend(theta, arguments, steps, rate):
    def step(_, at):
        return at + rate * jax.grad(_gain)(at, *arguments)

    return jax.lax.fori_loop(0, steps, step, jnp.asarray(theta))


def _to_the_ridge(theta: np.ndarray, arguments: tuple, setting: OnlineDpo) -> np.ndarray:
    fit = maximise(_gain, theta, arguments, scale=1.0)
    strength = float(arguments[-1])
    limit = STATIONARY * (1.0 + setting.beta / setting.tau + strength)
    if not fit.gradient <= limit:
        raise ConvergenceError(f"ridge {strength}: gradient {fit.gradient:.2e}, limit {limit:.2e}")
    return fit.theta


def _logits(tree: TokenTree, log_policy: Policy) -> np.ndarray:
    """Parameters of a policy that is > 0 on allowed tokens; InputError with the place if not."""
    check_levels(tree, log_policy)
    for h, (level, mask) in enumerate(zip(log_policy, tree.allowed_levels, strict=True)):
        held = np.isfinite(np.asarray(level)) | ~mask[None]
        if not held.all():
            x, s, a = (int(i) for i in np.argwhere(~held)[0])
            raise InputError(
                f"the policy gives token {tree.tokens[a]!r} no probability at prompt "
                f"{tree.prompts[x]!r}, level {h}, state {s}: online DPO has no ratio there"
            )
    return TabularPolicies.of(tree).logits(log_policy)
