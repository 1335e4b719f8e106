"""Fits of the sweep, all overheads included, against a loop of scikit-learn; the time of one cell.

python benchmarks/theory_sweep.py [--json OUT] [--quick]

- Rate: two_stage at d = 10 (4 bits, degree 2), N = 1000. Every candidate of every replicate is
  fitted twice, on four fifths of the pairs and on all. `ours, whole cell` is what the sweep does:
  it also draws the data, does soft RL, measures exactly and makes the rows. The loop does one fit
  after the other and nothing else.
- Growth: four times the replicates, time divided by four times the time.
- Compilations while shapes are seen for the second time, with other data, ridges and replicates.
- Stages: one cell of 8 bits, 8 tokens, N = 256.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from timing import INSTALL, finish, measure, row

from theory.arms import ARMS
from theory.batch import Batch
from theory.sweep import make_batch, parse_grid
from theory.sweep.cells import Cell
from theory.sweep.measures import held_out_loss
from theory.sweep.measures import measure as measured
from theory.sweep.run import run_cell

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TOLERANCE = 1e-3  # reward units; how far a score of scikit-learn may be from ours
PACKAGES = ("jax", "jaxlib", "numpy", "scikit-learn")


def cell_of(replicates: int, bits: int, n_pairs: int, arms: list[str], scale: float = 1.0) -> Cell:
    """Walsh polynomials of degree 2, one bit a token."""
    body = {"name": "benchmark", "replicates": replicates, "ridges": [scale * r for r in RIDGES]}
    block = {"name": "one", "arms": arms, "n_pairs": n_pairs, "bits": bits, "horizon": bits}
    return parse_grid({**body, "block": [{**block, "degree": 2}]}).cells[0]


def both_fits(name: str, batch: Batch) -> None:
    ARMS[name](batch, batch.train_weights)
    ARMS[name](batch, np.ones(batch.pairs.shape[:2]))


def sklearn_scores(batch: Batch, replicates: int) -> np.ndarray:
    """(K, replicates, L) fitted rewards, one fit after the other."""
    from sklearn.linear_model import LogisticRegression

    phi = batch.features[0, 0]
    out = np.empty((len(batch.ridges), replicates, len(phi)))
    label = np.arange(batch.n_pairs) % 2  # half of the pairs turned round: two classes are needed
    for i in range(replicates):
        d = phi[batch.pairs[i, :, 0]] - phi[batch.pairs[i, :, 1]]
        x = np.where(label[:, None] == 1, d, -d)
        for k, ridge in enumerate(batch.ridges):
            model = LogisticRegression(C=1.0 / ridge, fit_intercept=False, tol=1e-6, max_iter=1000)
            out[k, i] = phi @ model.fit(x, label).coef_[0]
    return out


def rate_rows(replicates: int, n_pairs: int, repeats: int) -> list[dict]:
    cell = cell_of(replicates, 4, n_pairs, ["two_stage"])
    batch = make_batch(cell)
    fits = 2 * replicates * len(RIDGES)
    case = f"d={batch.features.shape[3]} N={n_pairs}, {fits} fits"
    runs = {
        "ours, whole cell": lambda: run_cell(cell),
        "ours, fits and soft RL": lambda: both_fits("two_stage", batch),
    }
    few = min(replicates, 20)
    peer, note = "scikit-learn loop", INSTALL
    try:
        theirs = sklearn_scores(batch, few)
    except ImportError:
        pass
    else:
        ours = ARMS["two_stage"](batch, np.ones(batch.pairs.shape[:2])).score[:, :few, 0]
        off = float(np.abs(ours - theirs).max())
        if not off <= TOLERANCE:
            raise AssertionError(f"scikit-learn is {off:.1e} from our scores")
        runs[peer] = lambda: sklearn_scores(batch, few)
        note = f"timed on {few * len(RIDGES)} fits; scores differ by {off:.0e}"
    costs = measure(runs, repeats)
    cost = costs.pop(peer, None)
    if cost is not None:
        scale = fits / (few * len(RIDGES))
        cost = {k: v * scale for k, v in cost.items()}
        note = f"{1e3 * fits / cost['min']:,.0f} fits/s; {note}"
    rows = [row(case, peer, cost, "", note)]
    for name, own in costs.items():
        rate = f"{1e3 * fits / own['min']:,.0f} fits/s"
        rows.append(row(case, name, own, peer, rate, target=None if cost is None else 0.1))
    return rows


def growth_rows(replicates: int, n_pairs: int, repeats: int) -> list[dict]:
    rows = []
    for name in ("two_stage", "offline_all"):
        batches = [make_batch(cell_of(times * replicates, 4, n_pairs, [name])) for times in (1, 4)]
        runs = {str(i): lambda n=name, b=b: both_fits(n, b) for i, b in enumerate(batches)}
        costs = measure(runs, repeats)
        value = costs["1"]["min"] / (4.0 * costs["0"]["min"])
        case = f"{name}, {replicates} and {4 * replicates} replicates"
        words = f"time of four times the replicates / 4 times the time: {value:.2f}"
        rows.append(row(case, "growth", None, "", words, target=1.25, value=value))
    return rows


def compilation_row(replicates: int, n_pairs: int) -> dict:
    """Programs compiled by cells whose shapes have been seen, other things being different."""
    arms = ["two_stage", "two_stage_full", "offline_all", "offline_matched", "offline_proper"]
    run_cell(cell_of(replicates, 4, n_pairs, arms))
    seen: list[str] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    run_cell(cell_of(replicates + 3, 4, n_pairs, arms, scale=2.0))
    note = f"{len(seen)} programs compiled for {len(arms)} arms, other ridges and replicates"
    value = float(len(seen))
    return row("shapes seen before", "compilations", None, "", note, target=0.0, value=value)


def stage_rows(replicates: int, n_pairs: int, arms: list[str]) -> list[dict]:
    """Milliseconds of each stage of a cell, once, after its shapes were compiled."""
    cell = cell_of(replicates, 8, n_pairs, arms)
    case = f"8 bits, N={n_pairs}, {replicates} replicates, {len(RIDGES)} ridges"
    run_cell(cell_of(8, 8, n_pairs, arms))

    def timed(work) -> tuple[object, dict[str, float]]:
        start = time.perf_counter()
        result = work()
        took = 1e3 * (time.perf_counter() - start)
        return result, {"min": took, "median": took}

    whole, cost = timed(lambda: run_cell(cell))
    rows = [row(case, "whole cell", cost, "", f"{len(whole)} rows")]  # pyright: ignore
    batch, cost = timed(lambda: make_batch(cell))
    rows.append(row(case, "draw the data", cost, "whole cell"))
    for name in arms:
        trial, first = timed(lambda n=name: ARMS[n](batch, batch.train_weights))
        ones = np.ones(batch.pairs.shape[:2])  # pyright: ignore
        fitted, second = timed(lambda n=name, w=ones: ARMS[n](batch, w))
        cost = {k: first[k] + second[k] for k in first}
        target = {"target": 15.0, "value": cost["min"] / 1e3} if name == "offline_all" else {}
        rows.append(row(case, f"{name}, both fits", cost, "whole cell", **target))
        _, cost = timed(lambda b=batch, t=trial: held_out_loss(t.score, b.pairs, b.n_held))
        rows.append(row(case, f"{name}, choose", cost, "whole cell"))
        _, cost = timed(
            lambda b=batch, f=fitted: measured(
                b.tree, b.beta, b.reward, b.log_reference, f.log_p, f.score
            )
        )
        rows.append(row(case, f"{name}, measure", cost, "whole cell"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few fits, to see that it runs")
    asked = parser.parse_args()
    if asked.quick:
        rows = rate_rows(8, 100, 1) + growth_rows(8, 100, 1) + [compilation_row(8, 100)]
        rows += stage_rows(8, 40, ["two_stage", "offline_all"])
    else:
        rows = rate_rows(200, 1000, 5) + growth_rows(100, 1000, 3) + [compilation_row(16, 1000)]
        arms = ["two_stage", "two_stage_full", "offline_all", "offline_matched", "offline_proper"]
        rows += stage_rows(200, 256, arms)
    finish("theory_sweep", rows, PACKAGES, asked.json)


if __name__ == "__main__":
    main()
