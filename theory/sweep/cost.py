"""How long a grid takes, from a small table of measured times: for a dry run, not for a claim.

The table holds processor seconds (`time.process_time`, so that other work on the machine does not
count) of `theory.arms` on 8 to 32 replicates, 6 ridges and 256 pairs of the Walsh family: 8 bits;
networks 6 bits (MLP) and 4 bits (transformer). Fits and measures use two cores, compilation one.
Fits grow with the completions of all prompts, measures with the pairs of completions. Every arm
compiles its programs anew for each tree, reward class and power of two of pairs. The grid quick is
estimated at 108 seconds and took 92 seconds of processor time.
"""

from __future__ import annotations

from dataclasses import dataclass

from theory.sweep.cells import BIT_FAMILIES, Cell
from theory.sweep.data import sizes
from theory.sweep.grid import Grid

CORES = 2
START = 5.0  # seconds until the first cell runs
MEASURE = 0.0006 / 256**2  # seconds a policy and pair of completions


@dataclass(frozen=True)
class Cost:
    """Of one arm, processor seconds."""

    fit: float  # of one candidate on one replicate's pairs
    compile: float  # of one shape
    leaves: int = 256  # of the tree on which `fit` was measured
    candidates: int = 1  # a ridge
    features: bool = True  # whether the reward class is part of the shape


COSTS = {
    "two_stage": Cost(0.0002, 2.2),
    "two_stage_full": Cost(0.003, 2.1, features=False),
    "offline_all": Cost(0.0085, 4.5, features=False),
    "offline_all_one_hot": Cost(0.0035, 0.5, features=False),  # the program of offline_all
    "offline_matched": Cost(0.0009, 5.1),
    "offline_proper": Cost(0.0004, 5.1),
    "online_dpo_sft": Cost(0.0009, 10.0, candidates=3),
    "online_dpo_dpo": Cost(0.0038, 5.0, candidates=3),
    "online_population_sft": Cost(0.0028, 6.0, candidates=3),
    "online_population_dpo": Cost(0.0055, 0.5, candidates=3),
    "mlp_two_stage": Cost(0.0024, 3.0, leaves=64, candidates=3),
    "mlp_offline": Cost(0.0033, 5.0, leaves=64, candidates=3),
    "mlp_dpo": Cost(0.0035, 5.0, leaves=64, candidates=3),
    "transformer_two_stage": Cost(0.0074, 6.5, leaves=16, candidates=3),
    "transformer_offline": Cost(0.0083, 7.5, leaves=16, candidates=3),
    "transformer_dpo": Cost(0.0097, 6.5, leaves=16, candidates=3),
}


@dataclass(frozen=True)
class Estimate:
    """Of a grid, or of the part of it that is left."""

    cells: int
    fits: int  # (candidate, replicate) on both sets of pairs
    seconds: float


def estimate(grid: Grid) -> Estimate:
    """Cells, fits and about how many seconds they take on two cores."""
    fits, seconds = 0, START
    shapes: set[tuple[object, ...]] = set()
    for cell in grid.cells:
        dimension, prompts, leaves = sizes(cell)
        for arm in cell.arms:
            cost = COSTS[arm]
            count = cost.candidates * len(cell.ridges) * len(cell.seeds)
            fits += 2 * count
            work = 2 * cost.fit * prompts * leaves / cost.leaves + MEASURE * prompts * leaves**2
            seconds += count * work / CORES
            tied = dimension if cost.features else 0
            shape = (arm, _tree(cell), tied, (cell.n_pairs - 1).bit_length())
            if shape not in shapes:
                shapes.add(shape)
                seconds += cost.compile
    return Estimate(len(grid.cells), fits, seconds)


def _tree(cell: Cell) -> tuple[object, ...]:
    """What decides the shape of the tree, and no more."""
    settings = dict(cell.settings)
    if cell.family in BIT_FAMILIES:
        return settings["bits"], settings["horizon"]
    shaping = ("horizon", "vocab", "words", "prompts")
    return cell.family, *((key, value) for key, value in cell.settings if key in shaping)
