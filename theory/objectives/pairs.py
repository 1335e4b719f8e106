"""Losses of preference pairs: mean over the comparisons, nats unless said, to be minimised.

xi+ is the winner and xi- the loser of a comparison; the margin of a table h is h(xi+) - h(xi-).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.preferences import PairData
from theory.tree import TokenTree


def mle_loss(log_p: Float[AnyArray, "P L"], data: PairData, *, beta: float = 1.0) -> jax.Array:
    """-mean log sigmoid(beta (log P(xi+) - log P(xi-))): the local reward model (Eq. 9).

    Eq. 9 has beta = 1; the paper's Table 4 has beta = 1/H. Minimised by P proportional to
    exp(r / beta) with r a Bradley-Terry maximiser, which exists iff every component of the
    comparison graph is strongly connected; the mass of each component is free.
    """
    return _mean(data, -jax.nn.log_sigmoid(beta * _margin(log_p, data)))


def dpo_loss(
    log_p: Float[AnyArray, "P L"],
    log_ref: Float[AnyArray, "P L"],
    data: PairData,
    *,
    beta: float,
) -> jax.Array:
    """-mean log sigmoid(beta (log P/P_ref(xi+) - log P/P_ref(xi-))) (Rafailov et al. 2023, eq. 7).

    Minimised by P proportional to P_ref exp(r / beta), r and existence as in `mle_loss`.
    """
    margin = _margin(log_p, data) - _margin(log_ref, data)
    return _mean(data, -jax.nn.log_sigmoid(beta * margin))


def reference_free_dpo_loss(
    log_p: Float[AnyArray, "P L"], data: PairData, *, beta: float
) -> jax.Array:
    """`dpo_loss` with a reference uniform over completions, which cancels: Eq. 9 at that beta."""
    return dpo_loss(log_p, jnp.zeros(log_p.shape), data, beta=beta)


def ipo_loss(
    log_p: Float[AnyArray, "P L"],
    log_ref: Float[AnyArray, "P L"],
    data: PairData,
    *,
    tau: float,
) -> jax.Array:
    """mean (log P/P_ref(xi+) - log P/P_ref(xi-) - 1/(2 tau))^2 (Azar et al. 2023, eq. 17), nats^2.

    tau > 0: their regularisation. Minimised by log-ratios that solve the weighted least squares of
    (share of wins - share of losses)/(2 tau) on the comparison graph. A minimiser always exists,
    on acyclic data too; the mass of each weak component is free.
    """
    margin = _margin(log_p, data) - _margin(log_ref, data)
    return _mean(data, (margin - 1.0 / (2.0 * tau)) ** 2)


def slic_loss(
    log_p: Float[AnyArray, "P L"],
    data: PairData,
    *,
    delta: float,
    sft_weight: float = 0.0,
    targets: Float[AnyArray, "P L"] | None = None,
) -> jax.Array:
    """mean max(0, delta - log P(xi+) + log P(xi-)) - sft_weight sum targets log P (Zhao 2023).

    targets: distribution of the fine-tuning completions, prompt weight included, summing to 1
    (rho0 P_sft in population, counts / N of finite data); needed unless sft_weight is 0. Without
    the second term the loss is 0 exactly where every margin is at least delta, and such policies
    exist iff the comparison graph has no cycle (`slic_zero_loss`). At a margin of delta the hinge
    has a kink: jax takes the mean of its two slopes there.
    """
    hinge = _mean(data, jnp.maximum(0.0, delta - _margin(log_p, data)))
    if sft_weight == 0.0:
        return hinge
    if targets is None:
        raise InputError(f"sft_weight is {sft_weight!r}, not 0: the loss needs targets")
    return hinge - sft_weight * jnp.sum(targets * jnp.where(targets > 0, log_p, 0.0))


def simpo_loss(
    log_p: Float[AnyArray, "P L"],
    data: PairData,
    length: Float[AnyArray, " L"],
    *,
    beta: float,
    gamma: float,
) -> jax.Array:
    """-mean log sigmoid(s(xi+) - s(xi-) - gamma), s = (beta/|xi|) log P(xi) (Meng et al. 2024).

    length: |xi| in tokens, see `lengths`. Exists as in `mle_loss`; then s is fixed on each
    component up to a shift, and the shifts make P sum to 1 (see `simpo_optimum`).
    """
    score = beta * jnp.where(jnp.isneginf(log_p), 0.0, log_p) / jnp.asarray(length)[None, :]
    return _mean(data, -jax.nn.log_sigmoid(_margin(score, data) - gamma))


def lengths(tree: TokenTree) -> Float[np.ndarray, " L"]:
    """Tokens of every completion, its EOS counted; 1 at slots that are no completion."""
    counts = np.ones(tree.n_leaves)
    counts[tree.leaves] = [len(tree.leaf_tokens(int(leaf))) for leaf in tree.leaves]
    return counts


def _margin(table: AnyArray, data: PairData) -> jax.Array:
    """table(xi+) - table(xi-), one a row of the data."""
    values = jnp.asarray(table)
    return values[data.prompt, data.winner] - values[data.prompt, data.loser]


def _mean(data: PairData, loss: jax.Array) -> jax.Array:
    """Mean over comparisons, by count."""
    return jnp.dot(jnp.asarray(data.count), loss) / data.total
