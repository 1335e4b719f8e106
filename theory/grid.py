"""The grid of a sweep: TOML in, a tuple of validated cells out.

name = "quick"
seeds = [0, 1, 2]                 # one replicate each: its own reward and its own pairs
ridges = [0.03, 0.1, 0.3, 1, 3, 10]

[[block]]                         # lists are crossed
name = "pairs"
arms = ["two_stage", "offline_all"]
bits = 8
degree = 2                        # of the true reward
sharpness = 2.0                   # its standard deviation over completions, reward units
horizon = 8                       # tokens; each holds bits / horizon bits
n_pairs = [64, 256, 1024]
beta = 1.0                        # optional; reward units a nat
class_degree = 8                  # optional, of the arms; the true degree if left out
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from theory.errors import InputError
from theory.sizes import power_in_words

ARM_NAMES = ("two_stage", "offline_all", "offline_all_one_hot", "offline_matched", "offline_proper")
QUICK = Path(__file__).parent / "grids" / "quick.toml"
PAIR_BYTES = 2 * 2**30  # limit of one float64 table over all pairs of completions
VERSION = 1  # of what a cell holds; part of its hash
AXES = ("bits", "degree", "sharpness", "horizon", "n_pairs", "beta", "class_degree")
INTEGERS = ("bits", "degree", "horizon", "n_pairs", "class_degree")
DEFAULTS: dict[str, Any] = {"beta": 1.0, "class_degree": None}


@dataclass(frozen=True)
class Cell:
    """One point of the grid with all its arms, ridges and replicates."""

    block: str
    bits: int
    degree: int
    sharpness: float
    horizon: int
    n_pairs: int
    beta: float
    class_degree: int
    arms: tuple[str, ...]
    ridges: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Readable and unique within a grid up to the block's arms, ridges and seeds."""
        return (
            f"{self.block}-n{self.bits}-k{self.degree}-s{self.sharpness:g}-H{self.horizon}"
            f"-c{self.class_degree}-b{self.beta:g}-N{self.n_pairs}"
        )

    @property
    def file_name(self) -> str:
        """`<name>-<hash>.parquet`; the hash covers everything that decides the content."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.parquet"


@dataclass(frozen=True)
class Grid:
    """A named tuple of cells."""

    name: str
    cells: tuple[Cell, ...]

    def resolved(self) -> dict[str, Any]:
        """What grid.json holds: every cell in full."""
        cells = [asdict(cell) | {"file": cell.file_name} for cell in self.cells]
        return {"schema": 1, "name": self.name, "version": VERSION, "cells": cells}


def load_grid(path: Path) -> Grid:
    """Read and validate a grid. Raises InputError naming file, block, key and value."""
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    try:
        return parse_grid(body)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_grid(body: dict[str, Any]) -> Grid:
    """The grid of a parsed TOML document; errors name block, key and value."""
    _known(body, ("name", "seeds", "ridges", "block"), "the grid")
    name = body["name"]
    if not isinstance(name, str) or not name:
        raise InputError(f"name must be a non-empty string, got {name!r}")
    seeds = _numbers(body["seeds"], "seeds", whole=True)
    if min(seeds) < 0:
        raise InputError(f"seeds must be >= 0, got {min(seeds)}")
    ridges = _numbers(body["ridges"], "ridges", whole=False)
    if min(ridges) <= 0:
        raise InputError(f"ridges must be > 0, got {min(ridges)!r}")
    blocks = body["block"]
    if not isinstance(blocks, list) or not blocks:
        raise InputError("the grid has no [[block]]")
    cells = [cell for block in blocks for cell in _block_cells(block, ridges, seeds)]
    names = [cell.name for cell in cells]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise InputError(f"cell {doubled[0]!r} occurs twice")
    return Grid(name, tuple(cells))


def _block_cells(
    block: dict[str, Any], ridges: tuple[float, ...], seeds: tuple[int, ...]
) -> list[Cell]:
    """The cells of one block: its lists crossed, each combination checked."""
    if not isinstance(block, dict):
        raise InputError(f"a block is not a table: {block!r}")
    where = f"block {block.get('name')!r}"
    _known(block, ("name", "arms", *AXES), where, optional=tuple(DEFAULTS))
    if not isinstance(block["name"], str) or not block["name"].replace("_", "").isalnum():
        raise InputError(f"{where}: name must be letters, digits and _, got {block['name']!r}")
    arms = block["arms"]
    if not isinstance(arms, list) or not arms or len(set(map(str, arms))) != len(arms):
        raise InputError(f"{where}: arms must be a list of different names, got {arms!r}")
    for arm in arms:
        if arm not in ARM_NAMES:
            raise InputError(f"{where}: arm {arm!r} is none of {', '.join(ARM_NAMES)}")
    columns = []
    for axis in AXES:
        if block.get(axis, DEFAULTS.get(axis)) is None:
            columns.append((None,))
            continue
        value = block.get(axis, DEFAULTS.get(axis))
        try:
            columns.append(_numbers(value, axis, whole=axis in INTEGERS))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    cells = []
    for values in product(*columns):
        point: dict[str, Any] = dict(zip(AXES, values, strict=True))
        if point["class_degree"] is None:
            point["class_degree"] = point["degree"]
        _check_point(point, where)
        cells.append(Cell(block["name"], **point, arms=tuple(arms), ridges=ridges, seeds=seeds))
    return cells


def _check_point(point: dict[str, Any], where: str) -> None:
    """Raises InputError for a combination that cannot run."""
    bits = point["bits"]
    for key in ("bits", "n_pairs", "horizon", "beta", "sharpness"):
        if point[key] <= 0:
            raise InputError(f"{where}: {key} must be > 0, got {point[key]!r}")
    if bits > 64 or 8 * 4**bits > PAIR_BYTES:
        raise InputError(
            f"{where}: bits {bits} makes 2^{bits} = {power_in_words(2, bits)} leaves, whose pairs "
            f"take {power_in_words(4, bits, 8)} bytes; the limit is {PAIR_BYTES:,}"
        )
    for key in ("degree", "class_degree"):
        if not 1 <= point[key] <= bits:
            raise InputError(f"{where}: {key} {point[key]} lies outside 1..{bits}, the bits")
    if bits % point["horizon"]:
        raise InputError(f"{where}: horizon {point['horizon']} does not divide {bits} bits")


def _known(
    table: dict[str, Any], keys: tuple[str, ...], where: str, optional: tuple[str, ...] = ()
) -> None:
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(keys)}")
    missing = [key for key in keys if key not in table and key not in optional]
    if missing:
        raise InputError(f"{where}: key {missing[0]!r} is missing")


def _numbers(value: Any, key: str, *, whole: bool) -> tuple[Any, ...]:
    """A number or a non-empty list of different numbers, as a tuple."""
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise InputError(f"{key} is an empty list")
    for entry in entries:
        number = isinstance(entry, int if whole else (int, float)) and not isinstance(entry, bool)
        if not number or not math.isfinite(entry):
            kind = "whole numbers" if whole else "finite numbers"
            raise InputError(f"{key} must hold {kind}, got {entry!r}")
    if len(set(entries)) != len(entries):
        raise InputError(f"{key} names a value twice: {entries!r}")
    return tuple(int(entry) if whole else float(entry) for entry in entries)
