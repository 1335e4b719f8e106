"""The grid of a sweep: TOML in, a tuple of validated cells out.

name = "quick"
replicates = 200                  # or seeds = [0, 1, 2]; one replicate each
ridges = [0.03, 0.1, 0.3, 1, 3, 10]

[[block]]                         # lists are crossed
name = "pairs"
arms = ["two_stage", "offline_all"]
family = "walsh"                  # walsh if left out; one of theory.families
degree = [1, 2]                   # any setting of the family; what is left out has its default
n_pairs = [64, 256, 1024]
coverage = "uniform"              # uniform | on_policy | narrow
noise = 0.0                       # share of labels turned round
reference_share = 0.0             # P_ref proportional to exp(share r* / beta)
beta = 1.0                        # reward units a nat
reward_class = "true"             # true | full | degree-3 or {degree = 3}; of the two-stage road
width = 32                        # hidden units of the networks
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from theory.errors import InputError
from theory.sweep.cells import (
    ARM_NAMES,
    CELL_DEFAULTS,
    VERSION,
    Cell,
    family_defaults,
    is_number,
)

SHIPPED = Path(__file__).parent.parent / "grids"
MOST_CELLS = 100_000
MOST_REPLICATES = 1_000_000
RIDGES = (1e-9, 1e9)  # beyond, a fit to separable data does not end, or no fit leaves 0


@dataclass(frozen=True)
class Grid:
    """A named tuple of cells."""

    name: str
    cells: tuple[Cell, ...]

    def resolved(self) -> dict[str, Any]:
        """What grid.json holds: every cell in full."""
        cells = [cell.resolved() | {"file": cell.file_name} for cell in self.cells]
        return {"schema": 1, "name": self.name, "version": VERSION, "cells": cells}


def find_grid(grid: str) -> Path:
    """The file of a grid: a shipped one by its name, or a path."""
    shipped = SHIPPED / f"{grid}.toml"
    return shipped if grid and "/" not in grid and shipped.is_file() else Path(grid)


def load_grid(path: Path) -> Grid:
    """Read and validate a grid. Raises InputError naming file, block, key and value."""
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
        raise InputError(
            f"{path}: cannot be read: {error.strerror} (shipped grids: {names})"
        ) from error
    except (ValueError, RecursionError) as error:  # TOML, its text, numbers of 4,300 digits, depth
        raise InputError(f"{path}: not TOML: {error}") from error
    try:
        return parse_grid(body)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_grid(body: dict[str, Any]) -> Grid:
    """The grid of a parsed TOML document; errors name block, key and value."""
    _known(body, ("name", "ridges", "block"), ("replicates", "seeds"), "the grid")
    name = body["name"]
    if not isinstance(name, str) or not name:
        raise InputError(f"name must be a non-empty string, got {name!r}")
    seeds = _seeds(body)
    ridges = tuple(float(r) for r in _entries(body["ridges"], "ridges"))
    low, high = RIDGES
    if not all(low <= r <= high for r in ridges):
        raise InputError(f"ridges must lie in {low:g}..{high:g}, got {body['ridges']!r}")
    blocks = body["block"]
    if not isinstance(blocks, list) or not blocks:
        raise InputError("the grid has no [[block]]")
    cells = [cell for block in blocks for cell in _block_cells(block, ridges, seeds)]
    if len(cells) > MOST_CELLS:
        raise InputError(f"the grid has {len(cells):,} cells, at most {MOST_CELLS:,}")
    seen: set[str] = set()
    for cell in cells:
        if cell.name in seen:
            raise InputError(f"cell {cell.name!r} occurs twice")
        seen.add(cell.name)
    return Grid(name, tuple(cells))


def _seeds(body: dict[str, Any]) -> tuple[int, ...]:
    if ("seeds" in body) == ("replicates" in body):
        raise InputError("the grid needs either replicates (a number) or seeds (a list)")
    if "seeds" in body:
        seeds = tuple(_entries(body["seeds"], "seeds"))
        if not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise InputError(f"seeds must be whole numbers >= 0, got {body['seeds']!r}")
        return seeds
    count = body["replicates"]
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not 1 <= count <= MOST_REPLICATES:
        raise InputError(f"replicates must lie in 1..{MOST_REPLICATES:,}, got {count!r}")
    return tuple(range(count))


def _block_cells(block: Any, ridges: tuple[float, ...], seeds: tuple[int, ...]) -> list[Cell]:
    """The cells of one block: its lists crossed, each combination checked."""
    if not isinstance(block, dict):
        raise InputError(f"a block is not a table: {block!r}")
    where = f"block {block.get('name')!r}"
    if "class_degree" in block:
        raise InputError(
            f"{where}: class_degree is of version 1 of the grids; version {VERSION} says "
            f'reward_class = "degree-{block["class_degree"]}"'
        )
    try:
        settings = family_defaults(block.get("family", "walsh"))
        optional = ("family", *CELL_DEFAULTS, *settings)
        _known(block, ("name", "arms", "n_pairs"), optional, "its keys")
        if not isinstance(block["name"], str) or not block["name"].replace("_", "").isalnum():
            raise InputError(f"name must be letters, digits and _, got {block['name']!r}")
        arms = _arms(block["arms"])
        axes = {**settings, **CELL_DEFAULTS, "n_pairs": None}
        columns = [_column(block, key, default) for key, default in axes.items()]
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    size = math.prod(len(column) for column in columns)
    if size > MOST_CELLS:
        raise InputError(f"{where}: {size:,} cells, at most {MOST_CELLS:,}")
    cells = []
    for values in product(*columns):
        point = dict(zip(axes, values, strict=True))
        own = tuple((key, point.pop(key)) for key in settings)
        try:
            family = block.get("family", "walsh")
            cells.append(
                Cell(block["name"], family, own, **point, arms=arms, ridges=ridges, seeds=seeds)
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return cells


def _arms(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or len(set(map(str, value))) != len(value):
        raise InputError(f"arms must be a list of different names, got {value!r}")
    for arm in value:
        if arm not in ARM_NAMES:
            raise InputError(f"arm {arm!r} is none of {', '.join(ARM_NAMES)}")
    return tuple(value)


def _column(block: dict[str, Any], key: str, default: Any) -> list[Any]:
    """The values of one axis. Numbers where the default is one, words where it is one."""
    if key not in block:
        return [default]
    words = isinstance(default, str)
    value = block[key]
    if key == "reward_class":
        value = [_class(entry) for entry in (value if isinstance(value, list) else [value])]
    entries = _entries(value, key, words=words)
    if isinstance(default, float):
        return [float(entry) for entry in entries]
    if not words and not all(isinstance(entry, int) for entry in entries):
        raise InputError(f"{key} must hold whole numbers, got {block[key]!r}")
    return entries


def _class(entry: Any) -> Any:
    """{degree = 3} in the words that a cell uses, degree-3."""
    return (
        f"degree-{entry['degree']}"
        if isinstance(entry, dict) and list(entry) == ["degree"]
        else entry
    )


def _known(
    table: dict[str, Any], keys: tuple[str, ...], optional: tuple[str, ...], where: str
) -> None:
    unknown = sorted(set(table) - set(keys) - set(optional))
    if unknown:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}; known: {', '.join((*keys, *optional))}"
        )
    missing = [key for key in keys if key not in table]
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing")


def _entries(value: Any, key: str, *, words: bool = False) -> list[Any]:
    """A value or a non-empty list of different ones; numbers (finite), or words."""
    entries: Any = value if isinstance(value, list) else [value]
    if not entries:
        raise InputError(f"{key} is an empty list")
    for entry in entries:
        if words and not isinstance(entry, str):
            raise InputError(f"{key} must hold words, got {entry!r}")
        if not words and not is_number(entry):
            raise InputError(f"{key} must hold finite numbers, got {entry!r}")
    if len(set(entries)) != len(entries):
        raise InputError(f"{key} names a value twice: {entries!r}")
    return entries
