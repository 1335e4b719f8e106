"""One cell from its data to its rows: fit, choose, measure.

Every arm is chosen from by one rule. Each candidate is fitted on the first four fifths of the pairs
of a replicate; the least loss on the last fifth chooses one for that replicate; what is measured is
that candidate fitted on all pairs. Beside it stands the best in hindsight: the candidate whose fits
on all pairs have the least mean KL over the replicates of the cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from theory.arms.base import FitArm, Outcome
from theory.batch import Batch
from theory.complexity import generator_complexity, verifier_complexity
from theory.errors import InputError
from theory.families import spec_of
from theory.fit import ConvergenceError
from theory.sweep.cells import Cell
from theory.sweep.data import make_batch
from theory.sweep.measures import held_out_loss, measure
from theory.sweep.schema import BEST_OF, schema

EQUAL_ARMS = ("two_stage", "offline_proper")
EQUAL = 1e-8  # nats; how far log P of these two may differ on any completion
COUNTED = 8  # replicates whose complexity is counted


def run_cell(cell: Cell, arms: Mapping[str, FitArm] | None = None) -> pa.Table:
    """The rows of a cell, columns as in `schema`.

    arms: what fits each arm, by name; those of `theory.arms` if left out.
    Raises InputError for data that cannot be drawn or an arm that is not there, ConvergenceError,
    with the numbers, for a result that is not finite and where two_stage and offline_proper, both
    in the cell, do not give one policy.
    """
    registry = _registry() if arms is None else arms
    for name in cell.arms:
        if name not in registry:
            raise InputError(f"cell {cell.name}: there is no arm {name!r}")
    batch = make_batch(cell)
    shared = _cell_columns(cell, batch)
    tables, policies = [], {}
    for name in cell.arms:
        outcome, columns = _run_arm(cell, name, registry[name], batch)
        tables.append(_table(shared, columns))
        if name in EQUAL_ARMS:
            policies[name] = outcome.log_p
    if len(policies) == len(EQUAL_ARMS):
        _check_equal(cell, batch, policies)
    return pa.concat_tables(tables)


def _registry() -> Mapping[str, FitArm]:
    import theory.arms

    return theory.arms.ARMS


def _run_arm(cell: Cell, name: str, arm: FitArm, batch: Batch) -> tuple[Outcome, dict[str, Any]]:
    """Fit on four fifths, choose, fit on all, measure. Columns are (K, R) arrays."""
    trial = arm(batch, batch.train_weights)
    held = held_out_loss(trial.score, batch.pairs, batch.n_held)
    del trial
    fitted = arm(batch, np.ones(batch.pairs.shape[:2]))
    if held.shape != fitted.gradient.shape:
        raise InputError(f"arm {name}: {held.shape} candidates, then {fitted.gradient.shape}")
    found = measure(
        batch.tree, batch.beta, batch.reward, batch.log_reference, fitted.log_p, fitted.score
    )
    _check_finite(cell, name, fitted, {**found, "held_out_loss": held})
    count = len(fitted.candidates)
    best = int(np.argmin(found["kl"].mean(axis=1)))
    choice = np.argmin(held, axis=0)
    each = np.arange(count)[:, None]
    columns: dict[str, Any] = {
        "arm": name,
        "candidate": np.broadcast_to(each, held.shape),
        "ridge": _over(fitted, [c.ridge for c in fitted.candidates]),
        "stop": _over(fitted, [c.stop for c in fitted.candidates]),
        "held_out_loss": held,
        "chosen": each == choice[None, :],
        "hindsight": np.broadcast_to(each == best, held.shape),
        **found,
        "n_parameters": fitted.n_parameters,
        "jacobian_rank": fitted.jacobian_rank,
        "gradient": fitted.gradient,
        "steps": fitted.steps.astype(np.float64),
        "converged": fitted.converged,
    }
    return fitted, columns


def _over(outcome: Outcome, values: list[Any]) -> np.ndarray:
    """One value a candidate, (K, R); None stays."""
    return np.broadcast_to(np.array(values, dtype=object)[:, None], outcome.gradient.shape)


def _table(shared: dict[str, Any], columns: dict[str, Any]) -> pa.Table:
    """Rows candidate by candidate, replicate by replicate, from (K, R) columns and constants."""
    shape = columns["held_out_loss"].shape
    rows = shape[0] * shape[1]
    columns = {**columns, "seed": np.broadcast_to(shared["seed"][None, :], shape)}
    columns["best_of_n_counts"] = [list(BEST_OF)] * rows
    arrays = []
    for field in schema():
        value = columns.get(field.name, shared.get(field.name))
        if isinstance(value, np.ndarray):
            value = value.reshape(rows, *value.shape[2:]).tolist()
        elif not isinstance(value, list):
            value = [value] * rows
        arrays.append(pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=schema())


def _cell_columns(cell: Cell, batch: Batch) -> dict[str, Any]:
    """What is the same in every row, and the seeds."""
    tree, settings = batch.tree, dict(cell.settings)
    names = ("block", "family", "reward_class", "coverage", "noise", "reference_share", "width")
    return {
        **{name: getattr(cell, name) for name in names},
        "cell": cell.name,
        "settings": json.dumps(settings, sort_keys=True),
        "sharpness": settings["sharpness"],
        "horizon": tree.horizon,
        "vocab": tree.vocab,
        "n_prompts": tree.n_prompts,
        "n_completions": len(tree.leaves),
        "complexity": settings[cell.complexity_name],
        "complexity_name": cell.complexity_name,
        **_complexity(cell.family, cell.settings, cell.beta, cell.seeds[:COUNTED]),
        "reward_dim": batch.features.shape[3],
        "n_pairs": cell.n_pairs,
        "n_held": cell.n_held,
        "beta": cell.beta,
        "seed": np.array(cell.seeds),
    }


@lru_cache(maxsize=256)
def _complexity(
    family: str, settings: tuple[tuple[str, Any], ...], beta: float, seeds: tuple[int, ...]
) -> dict[str, float | None]:
    """Means over the seeds of the counts of `theory.complexity`; None where there is none."""
    counts: dict[str, list[float]] = {}
    for seed in seeds:
        truth = spec_of(family, {**dict(settings), "seed": seed}).draw()
        verifier, generator = verifier_complexity(truth), generator_complexity(truth, beta)
        walsh = verifier.walsh, generator.walsh_q
        counts.setdefault("verifier_entries", []).append(verifier.entries)
        counts.setdefault("generator_entries", []).append(generator.entries)
        for name, count in zip(("verifier_walsh", "generator_walsh"), walsh, strict=True):
            if count is not None:
                counts.setdefault(name, []).append(count.nonzero)
    names = ("verifier_walsh", "verifier_entries", "generator_walsh", "generator_entries")
    return {name: float(np.mean(counts[name])) if name in counts else None for name in names}


# --- what must hold -------------------------------------------------------------------------------


def _check_finite(cell: Cell, name: str, fitted: Outcome, found: dict[str, np.ndarray]) -> None:
    for measured, values in found.items():
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            k, i = (int(v) for v in bad[0][:2])
            value = values[tuple(bad[0])]
            raise ConvergenceError(
                f"cell {cell.name}, arm {name}, {fitted.candidates[k]}, seed {cell.seeds[i]}: "
                f"{measured} is {value}, gradient {fitted.gradient[k, i]:.3e}"
            )


def _check_equal(cell: Cell, batch: Batch, policies: dict[str, np.ndarray]) -> None:
    """Theorem 3.1 in the cell: both arms give one policy. Raises ConvergenceError if not."""
    first, second = (policies[name][..., batch.tree.leaves] for name in EQUAL_ARMS)
    gap = np.abs(first - second).max(axis=(2, 3))
    if not gap.max() <= EQUAL:
        k, i = np.unravel_index(int(np.argmax(gap)), gap.shape)
        raise ConvergenceError(
            f"cell {cell.name}, ridge {cell.ridges[k]:g}, seed {cell.seeds[i]}: {EQUAL_ARMS[0]} "
            f"and {EQUAL_ARMS[1]} differ by {gap[k, i]:.3e} nats in log P, limit {EQUAL:g}"
        )
