"""How long a grid takes, from a small table of measured times: for a dry run, not for a claim.

Measured with `run_cell` on two cores of a 2.1 GHz server, 200 replicates, Walsh family of 8 bits
(256 completions), 256 pairs, 6 ridges. A fit is one (candidate, replicate) on one of the two sets
of pairs; its time is scaled by the number of completions of all prompts. Every arm compiles its
programs anew for each tree, reward class and power of two of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from theory.sweep.cells import Cell
from theory.sweep.data import sizes
from theory.sweep.grid import Grid

LEAVES = 256  # of the cell that was measured


@dataclass(frozen=True)
class Cost:
    """Of one arm."""

    fit: float  # seconds a fit, the measures of half a candidate with it
    compile: float  # seconds a shape
    candidates: int = 1  # a ridge


COSTS = {
    "two_stage": Cost(0.0005, 2.0),
    "two_stage_full": Cost(0.005, 3.0),
    "offline_all": Cost(0.005, 4.0),
    "offline_all_one_hot": Cost(0.005, 4.0),
    "offline_matched": Cost(0.002, 4.0),
    "offline_proper": Cost(0.002, 4.0),
    "online_dpo_sft": Cost(0.02, 10.0),
    "online_dpo_dpo": Cost(0.02, 10.0),
    "online_population_sft": Cost(0.02, 10.0),
    "online_population_dpo": Cost(0.02, 10.0),
    "mlp_two_stage": Cost(0.05, 10.0),
    "mlp_offline": Cost(0.05, 10.0),
    "mlp_dpo": Cost(0.1, 10.0),
    "transformer_two_stage": Cost(0.2, 15.0),
    "transformer_offline": Cost(0.2, 15.0),
    "transformer_dpo": Cost(0.4, 15.0),
}


@dataclass(frozen=True)
class Estimate:
    """Of a grid, or of the part of it that is left."""

    cells: int
    fits: int  # (candidate, replicate) on both sets of pairs
    seconds: float


def estimate(grid: Grid) -> Estimate:
    """Cells, fits and about how many seconds they take on two cores."""
    fits, seconds = 0, 0.0
    shapes: set[tuple[object, ...]] = set()
    for cell in grid.cells:
        dimension, prompts, leaves = sizes(cell)
        for arm in cell.arms:
            cost = COSTS[arm]
            count = 2 * cost.candidates * len(cell.ridges) * len(cell.seeds)
            fits += count
            seconds += count * cost.fit * prompts * leaves / LEAVES
            shape = (arm, _tree(cell), dimension, (cell.n_pairs - 1).bit_length())
            if shape not in shapes:
                shapes.add(shape)
                seconds += cost.compile
    return Estimate(len(grid.cells), fits, seconds)


def _tree(cell: Cell) -> tuple[object, ...]:
    """What decides the shape of the tree, and no more."""
    shaping = ("bits", "horizon", "vocab", "words", "prompts", "reference", "states")
    return cell.family, *((key, value) for key, value in cell.settings if key in shaping)
