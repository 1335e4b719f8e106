"""Proper-learning sweeps: every cell of a grid measured exactly and stored as parquet.

One row an (arm, ridge, replicate); `best_ridge` marks the ridge with the least mean KL of its arm
over the replicates of the cell, chosen in hindsight. Everything but the pairs is exact: KL, regret
and win rate by enumeration, validation over all pairs of different completions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from theory.arms import Arm, Fit, fit, jacobian_rank, make_arm
from theory.errors import InputError
from theory.fit import ConvergenceError
from theory.grid import Cell, Grid
from theory.operators import step
from theory.walsh import all_bits, features, random_coefficients, subsets

EQUAL_ARMS = ("two_stage", "offline_proper")
EQUAL = 1e-8  # nats; how far log P of these two may differ on any completion
PADDED = 1024  # pairs are padded with weight 0 up to this, so that shapes are shared


def true_reward(bits: int, degree: int, sharpness: float, seed: int) -> Float[np.ndarray, " L"]:
    """A random Walsh polynomial of this degree and standard deviation on every completion."""
    terms = subsets(bits, degree)
    generator = np.random.default_rng([seed, bits, degree, 0])
    return features(all_bits(bits), terms) @ random_coefficients(generator, len(terms), sharpness)


def draw_pairs(reward: Float[np.ndarray, " L"], n_pairs: int, seed: int) -> np.ndarray:
    """(N, 2) winner and loser: pairs of different completions, uniform with replacement.

    Labels are Bradley-Terry draws by `reward` (Eq. 4).
    """
    generator = np.random.default_rng([seed, len(reward), n_pairs, 1])
    n_leaves = len(reward)
    first = generator.integers(n_leaves, size=n_pairs)
    second = (first + 1 + generator.integers(n_leaves - 1, size=n_pairs)) % n_leaves
    wins = generator.random(n_pairs) < 1.0 / (1.0 + np.exp(reward[second] - reward[first]))
    return np.stack([np.where(wins, first, second), np.where(wins, second, first)], axis=1)


def run_cell(cell: Cell) -> pa.Table:
    """Fit every arm of the cell at every ridge on every replicate, and measure.

    Raises ConvergenceError, with the numbers, for a KL that is not finite and where two_stage and
    offline_proper, both in the cell, do not give one policy.
    """
    rewards = np.stack(
        [true_reward(cell.bits, cell.degree, cell.sharpness, seed) for seed in cell.seeds]
    )
    pairs = np.stack(
        [draw_pairs(r, cell.n_pairs, s) for r, s in zip(rewards, cell.seeds, strict=True)]
    )
    padding = max(0, PADDED - cell.n_pairs)
    weights = np.pad(np.ones(cell.n_pairs), (0, padding))
    pairs = np.pad(pairs, ((0, 0), (0, padding), (0, 0)))
    rows: list[dict[str, Any]] = []
    thetas: dict[str, np.ndarray] = {}
    for name in cell.arms:
        arm = _arm(cell, name)
        fitted = fit(arm, pairs, weights, cell.ridges)
        rows += _arm_rows(cell, arm, fitted, rewards)
        thetas[name] = fitted.theta
    if set(EQUAL_ARMS) <= set(thetas):
        _check_equal(cell, thetas)
    return pa.Table.from_pylist(rows)


def _arm(cell: Cell, name: str) -> Arm:
    # The classes of all policies have no degree: one program serves every degree.
    degree = cell.bits if name.startswith("offline_all") else cell.class_degree
    return make_arm(name, cell.bits, degree, cell.horizon, cell.beta)


def _check_equal(cell: Cell, thetas: dict[str, np.ndarray]) -> None:
    """Theorem 3.1 in the cell: both arms give one policy. Raises ConvergenceError if not."""
    first, second = (
        np.asarray(jax.vmap(jax.vmap(_arm(cell, name).log_probs))(jnp.asarray(thetas[name])))
        for name in EQUAL_ARMS
    )
    gap = np.abs(first - second).max(axis=2)
    if not gap.max() <= EQUAL:
        k, i = np.unravel_index(int(np.argmax(gap)), gap.shape)
        raise ConvergenceError(
            f"cell {cell.name}, ridge {cell.ridges[k]:g}, seed {cell.seeds[i]}: {EQUAL_ARMS[0]} "
            f"and {EQUAL_ARMS[1]} differ by {gap[k, i]:.3e} nats in log P, limit {EQUAL:g}"
        )


def _arm_rows(cell: Cell, arm: Arm, fitted: Fit, rewards: np.ndarray) -> list[dict[str, Any]]:
    measured = {
        key: np.asarray(value)
        for key, value in _measure(arm)(jnp.asarray(fitted.theta), jnp.asarray(rewards)).items()
    }
    if not np.isfinite(measured["kl"]).all():
        k, i = np.argwhere(~np.isfinite(measured["kl"]))[0]
        raise ConvergenceError(
            f"cell {cell.name}, arm {arm.name}, ridge {cell.ridges[k]:g}, seed {cell.seeds[i]}: "
            f"KL is {measured['kl'][k, i]}, gradient {fitted.gradient[k, i]:.3e}"
        )
    best = int(np.argmin(measured["kl"].mean(axis=1)))
    rank = _rank(arm)
    rows = []
    for k, ridge in enumerate(cell.ridges):
        for i, seed in enumerate(cell.seeds):
            rows.append(
                {
                    "cell": cell.name,
                    "block": cell.block,
                    "family": "walsh",
                    "degree": cell.degree,
                    "class_degree": cell.class_degree,
                    "sharpness": cell.sharpness,
                    "horizon": cell.horizon,
                    "bits": cell.bits,
                    "n_pairs": cell.n_pairs,
                    "beta": cell.beta,
                    "seed": seed,
                    "arm": arm.name,
                    "ridge": ridge,
                    "best_ridge": k == best,
                    **{key: float(value[k, i]) for key, value in measured.items()},
                    "n_parameters": arm.n_parameters,
                    "jacobian_rank": rank,
                    "gradient": float(fitted.gradient[k, i]),
                    "steps": int(fitted.steps[k, i]),
                }
            )
    return rows


@lru_cache(maxsize=64)
def _rank(arm: Arm) -> int:
    return jacobian_rank(arm)


@lru_cache(maxsize=64)
def _measure(arm: Arm) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    """(K, R, d), (R, L) -> the exact measurements of `measure`, (K, R) each."""

    def one(problem: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        theta, reward = problem
        return measure(arm.log_probs(theta), arm.score(theta), reward, arm.beta)

    def every(theta: jax.Array, rewards: jax.Array) -> dict[str, jax.Array]:
        return jax.lax.map(lambda row: jax.lax.map(one, (row, rewards)), theta)

    return jax.jit(every)


def measure(
    log_p: Float[jax.Array, " L"],
    score: Float[jax.Array, " L"],
    reward: Float[jax.Array, " L"],
    beta: float,
) -> dict[str, jax.Array]:
    """How far a fitted policy and its implied reward are from the truth, exactly.

    kl: KL(P_pi || P*_r), nats. regret: E_{P*_r} r - E_{P_pi} r, reward units; negative where the
    policy is sharper than the soft optimum. win_rate: against a uniform completion, ties half.
    val_loss, val_accuracy: over all pairs of different completions, Bradley-Terry labels by
    `reward`, nats a pair and 0-1; ties of the score count half.
    """
    log_star = jax.nn.log_softmax(reward / beta)
    p = jnp.exp(log_p)
    gap = reward[:, None] - reward[None, :]
    beats = jnp.mean(step(gap), axis=1)
    margin = score[:, None] - score[None, :]
    label = jax.nn.sigmoid(gap)
    n = reward.shape[0]
    loss = jnp.sum(label * jax.nn.softplus(-margin)) - n * 0.5 * jnp.log(2.0)
    accuracy = jnp.sum(label * step(margin)) - n * 0.25
    return {
        "kl": jnp.sum(p * (log_p - log_star)),
        "regret": jnp.sum((jnp.exp(log_star) - p) * reward),
        "win_rate": jnp.sum(p * beats),
        "val_loss": loss / (n * (n - 1) / 2),
        "val_accuracy": accuracy / (n * (n - 1) / 2),
    }


# --- files ----------------------------------------------------------------------------------------


def prepare(out: Path, grid: Grid) -> None:
    """Make `out` this grid's folder. Raises InputError if another grid made it."""
    record = out / "grid.json"
    text = json.dumps(grid.resolved(), indent=1, allow_nan=False) + "\n"
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is not a folder")
    if record.exists():
        if record.read_text(encoding="utf-8") != text:
            raise InputError(f"{out} was made by another grid ({record}); choose another --out")
        return
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out} holds files but no grid.json; choose another --out")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    partial = record.with_name("grid.json.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(record)


def missing(out: Path, grid: Grid) -> list[Cell]:
    """The cells that are not stored yet."""
    return [cell for cell in grid.cells if not (out / "cells" / cell.file_name).exists()]


def store(out: Path, cell: Cell, table: pa.Table) -> Path:
    """Write one cell whole or not at all."""
    path = out / "cells" / cell.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial)
    partial.replace(path)
    return path


def load_cells(out: Path, grid: Grid) -> pa.Table:
    """All stored rows of the grid. Raises InputError if a cell is missing."""
    absent = missing(out, grid)
    if absent:
        raise InputError(f"{out}: cell {absent[0].name} is missing")
    return pa.concat_tables(pq.read_table(out / "cells" / c.file_name) for c in grid.cells)
