"""Means over replicates, paired gaps, and the setting at the centre of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from paper_figures.sweep_records import CHOSEN, Cell

FIRST, ALL, MATCHED, PROPER = "two_stage", "offline_all", "offline_matched", "offline_proper"


@dataclass(frozen=True)
class Mean:
    """A mean over replicates with its 95% t interval (half width, None below two replicates)."""

    value: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half is None else self.value - self.half

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half is None else self.value + self.half


Value = Callable[[Cell, str, str], Mean | None]  # (cell, arm, choice) -> a mean, if it was run


def mean_of(values: np.ndarray) -> Mean:
    """Mean and half width of the 95% t interval of (n,) values."""
    n = len(values)
    half = None
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Mean(float(np.mean(values)), half, n)


def level(cell: Cell, arm: str, choice: str = CHOSEN, measure: str = "kl") -> Mean | None:
    """The mean of one arm's measure, or None where the arm was not run."""
    fit = cell.fits.get((arm, choice))
    return None if fit is None else mean_of(fit.measures[measure])


def gap(cell: Cell, arm: str, choice: str = CHOSEN) -> Mean | None:
    """Mean of KL(arm) - KL(two-stage) in nats, paired by replicate; None without both arms."""
    fit, first = cell.fits.get((arm, choice)), cell.fits.get((FIRST, choice))
    if fit is None or first is None or arm == FIRST:
        return None
    shared, left, right = np.intersect1d(fit.seeds, first.seeds, return_indices=True)
    if not len(shared):
        return None
    return mean_of(fit.measures["kl"][left] - first.measures["kl"][right])


def kinds(cells: Iterable[Cell]) -> list[str]:
    """The families in the order of the grid; each kind of automaton is one."""
    return list(dict.fromkeys(cell.kind for cell in cells))


def settings_of(cells: Iterable[Cell]) -> dict[tuple, list[Cell]]:
    """Setting -> its cells by ascending N, settings in the order of the grid."""
    out: dict[tuple, list[Cell]] = {}
    for cell in cells:
        out.setdefault(cell.setting, []).append(cell)
    return {setting: sorted(rows, key=lambda c: c.n_pairs) for setting, rows in out.items()}


def centre(cells: Sequence[Cell], kind: str) -> list[Cell]:
    """The cells, by N, of the setting of a family that stands at the centre of the grid.

    That is the one with several N, from which the most other settings differ in a single
    coordinate; among equals the one with the most arms, then the most N, then the first.
    """
    found = settings_of(cell for cell in cells if cell.kind == kind)

    def rank(setting: tuple) -> tuple[bool, int, int, int]:
        here = dict(setting)
        near = sum(_differ(here, dict(other)) == 1 for other in found)
        rows = found[setting]
        arms = {arm for cell in rows for arm in cell.arms}
        return len(rows) > 1, near, len(arms), len(rows)

    return found[max(found, key=rank)]  # max keeps the first of equals


def _differ(one: dict, other: dict) -> int:
    return sum(one.get(key) != other.get(key) for key in one.keys() | other.keys())


def spread_out(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, the ends among them, evenly by rank."""
    ordered = sorted(set(values))
    if len(ordered) <= most:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]
