"""Bradley-Terry maximum likelihood: many small fits, against numpy, scipy, sklearn and choix.

python benchmarks/theory_bt.py [--json OUT] [--quick]

Every peer must reach our optimum, or the run fails: to its figure in TOLERANCE, which is what the
settings given here allow it. The largest difference found is printed. Ours runs a thread a core
over the fits; the peers run one fit after the other, each with as many BLAS threads as the record's
`threads` say (unset: a thread a core).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from timing import INSTALL, finish, measure, row

from theory.bradley_terry import fit_counts, fit_many

TOLERANCE = {
    "numpy Newton": 1e-8,
    "scipy L-BFGS-B": 1e-5,
    "sklearn lbfgs": 1e-5,
    "choix ilsr_pairwise_dense": 1e-5,
}
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "choix")


def pairs_data(replicates: int, pairs: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """d (R, N, D), winner less loser, and unit weights (R, N)."""
    rng = np.random.default_rng(0)
    d = rng.normal(size=(replicates, pairs, dimension))
    theta = 0.5 * rng.normal(size=(replicates, dimension))
    won = rng.random((replicates, pairs)) < expit(np.einsum("rnd,rd->rn", d, theta))
    return np.where(won[:, :, None], d, -d), np.ones((replicates, pairs))


def by_numpy(d: np.ndarray) -> np.ndarray:
    """Newton's method."""
    theta = np.zeros(d.shape[1])
    for _ in range(50):
        lost = expit(-d @ theta)
        slope = d.T @ lost
        if np.linalg.norm(slope) < 1e-9:
            break
        theta += np.linalg.solve((d * (lost * (1.0 - lost))[:, None]).T @ d, slope)
    return theta


def by_scipy(d: np.ndarray) -> np.ndarray:
    """L-BFGS-B with the exact gradient."""

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = d @ theta
        return float(np.logaddexp(0.0, -margin).sum()), -d.T @ expit(-margin)

    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    return minimize(loss, np.zeros(d.shape[1]), jac=True, method="L-BFGS-B", options=options).x


def sklearn_fit():
    from sklearn.linear_model import LogisticRegression

    def fit(d: np.ndarray) -> np.ndarray:
        label = np.arange(len(d)) % 2  # half of the pairs turned round: two classes are needed
        x = np.where(label[:, None] == 1, d, -d)
        model = LogisticRegression(C=np.inf, solver="lbfgs", fit_intercept=False, tol=1e-9)
        return model.set_params(max_iter=1000).fit(x, label).coef_[0]

    return fit


def agreed(name: str, ours, theirs) -> float:
    """The largest difference of any fit. Raises AssertionError above the peer's tolerance."""
    pairs = zip(ours, theirs, strict=True)
    off = float(np.max([np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs]))
    limit = TOLERANCE.get(name, 1e-8)
    if not off <= limit:
        raise AssertionError(f"{name} is {off:.1e} from our optimum, its tolerance is {limit:.0e}")
    return off


def features_case(replicates: int, pairs: int, dimension: int, repeats: int) -> list[dict]:
    case = f"d={dimension} N={pairs}, {replicates} fits"
    d, w = pairs_data(replicates, pairs, dimension)
    peers = {"numpy Newton": by_numpy, "scipy L-BFGS-B": by_scipy}
    rows = []
    try:
        peers["sklearn lbfgs"] = sklearn_fit()
    except ImportError:
        rows.append(row(case, "sklearn lbfgs", None, "", INSTALL))
    few = max(1, replicates // 10)  # of the slow peers; their time is scaled up
    ours = np.asarray(fit_many(d, w)[0])
    runs = {"ours": lambda: jax.block_until_ready(fit_many(d, w))}
    share = {name: replicates if name == "numpy Newton" else few for name in peers}
    for name, fit in peers.items():
        runs[name] = lambda fit=fit, n=share[name]: [fit(d[i]) for i in range(n)]
    costs = measure(runs, repeats)
    rows.insert(0, row(case, "ours", costs["ours"], ""))
    for name, fit in peers.items():
        cost = {k: v * replicates / share[name] for k, v in costs[name].items()}
        compared = range(min(few, 20))
        off = agreed(name, [ours[i] for i in compared], [fit(d[i]) for i in compared])
        note = (
            f"of ours; timed on {share[name]} fits; theta differs by {off:.0e} on "
            f"{len(compared)}, tolerance {TOLERANCE[name]:.0e}"
        )
        rows.append(row(case, name, cost, "ours", note))
    return rows


def counts_case(replicates: int, items: int, pairs: int, repeats: int) -> list[dict]:
    case = f"{items} items, {pairs} pairs, {replicates} fits"
    rng = np.random.default_rng(1)
    wins = np.zeros((replicates, items, items))
    for table in wins:
        strength = rng.normal(size=items)
        i = rng.integers(items, size=pairs)
        j = (i + rng.integers(1, items, size=pairs)) % items
        won = rng.random(pairs) < expit(strength[i] - strength[j])
        np.add.at(table, (np.where(won, i, j), np.where(won, j, i)), 1.0)
    runs: dict[str, Callable[[], object]] = {}
    off = 0.0
    try:
        import choix
    except ImportError:
        pass
    else:
        ours = np.asarray(fit_counts(wins)[0])
        few = range(min(replicates, 50))
        runs = {"choix ilsr_pairwise_dense": lambda: [fit_by_choix(choix, wins[i]) for i in few]}
        name = "choix ilsr_pairwise_dense"
        off = agreed(name, [ours[i] for i in few], [fit_by_choix(choix, wins[i]) for i in few])
    costs = measure({"ours": lambda: jax.block_until_ready(fit_counts(wins))} | runs, repeats)
    rows = [row(case, "ours", costs.pop("ours"), "")]
    for name, cost in costs.items():
        scaled = {k: v * replicates / len(few) for k, v in cost.items()}
        note = (
            f"of ours; timed on {len(few)} fits; strengths differ by {off:.0e} on these, "
            f"tolerance {TOLERANCE[name]:.0e}"
        )
        rows.append(row(case, name, scaled, "ours", note))
    if not runs:
        rows.append(row(case, "choix ilsr_pairwise_dense", None, "", INSTALL))
    return rows


def fit_by_choix(choix, wins: np.ndarray) -> np.ndarray:
    return choix.ilsr_pairwise_dense(wins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few fits, to see that it runs")
    asked = parser.parse_args()
    if asked.quick:
        rows = features_case(4, 100, 3, 1) + counts_case(4, 5, 300, 1)
    else:
        rows = features_case(1000, 1000, 10, 5) + features_case(200, 2000, 50, 5)
        rows += counts_case(1000, 20, 2000, 5)
    finish("theory_bt", rows, PACKAGES, asked.json)


if __name__ == "__main__":
    main()
