"""Proper-learning sweeps: every cell of a grid measured exactly and stored as parquet.

- `grid` and `cells`: what is asked, from TOML.
- `data`: the replicates of a cell, drawn.
- `measures`: what a fitted policy is worth, exactly.
- `run`: one cell from its data to its rows; `schema` has their columns.
- `files`: a cell is stored whole or not at all.
"""

from theory.sweep.cells import ARM_NAMES, Cell
from theory.sweep.data import make_batch
from theory.sweep.grid import Grid, find_grid, load_grid, parse_grid
from theory.sweep.schema import COLUMNS, schema

__all__ = [
    "ARM_NAMES",
    "COLUMNS",
    "Cell",
    "Grid",
    "find_grid",
    "load_grid",
    "make_batch",
    "parse_grid",
    "schema",
]
