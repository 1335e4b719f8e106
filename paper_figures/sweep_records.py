"""Reader of a sweep folder: grid.json, cells/*.parquet and efficiency.parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paper_figures.errors import InputError
from paper_figures.fields import Fields, read_json
from paper_figures.tables import read_parquet

VERSION = 2  # of the folders that this module reads
CHOSEN, HINDSIGHT = "chosen", "hindsight"
CHOICES = (CHOSEN, HINDSIGHT)
MEASURES = ("kl", "regret", "win_rate", "val_loss", "val_accuracy")
COORDINATES = ("reward_class", "coverage", "noise", "reference_share", "beta", "width")
SCALES = ("verifier_walsh", "verifier_entries", "generator_walsh", "generator_entries")
NUMBERS = ("complexity", "sharpness", "horizon", "vocab", "n_prompts", "n_completions", "n_pairs")
CURVE = ("best_of_n", "best_of_n_counts")
PER_CELL = (
    "block", "family", "settings", "complexity_name", "reward_dim",
    *COORDINATES, *SCALES, *NUMBERS,
)  # fmt: skip
PER_FIT = ("arm", "seed", "ridge", "n_parameters", "jacobian_rank", *CHOICES, *MEASURES, *CURVE)
RATIO_TEXT = ("family", "setting", "choice", "offline_arm", "online_arm", "bound")
RATIO_NUMBERS = ("complexity", "target_kl", "n_online", "n_offline", "ratio", "low", "high")
RATIO_KEYS = (*RATIO_TEXT, *RATIO_NUMBERS, "sharpness", "horizon", "replicates")
BOUNDS = ("none", "ratio is at least", "ratio is at most", "neither arm reaches it")


@dataclass(frozen=True, eq=False)
class Fit:
    """One arm of one cell under one choice of its candidate, a row for each replicate."""

    arm: str
    choice: str  # "chosen" by held-out pairs, or the best in "hindsight"
    seeds: np.ndarray  # (R,), ascending
    measures: dict[str, np.ndarray]  # each (R,): kl in nats, regret in reward units, ...
    best_of_n: np.ndarray | None  # (R, counts): true reward less the reference's own mean
    counts: tuple[int, ...]
    ridge: float | None  # None where replicates differ
    parameters: int
    rank: int | None


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the grid. Counts and complexities are numbers; None where there is none."""

    family: str
    block: str
    settings: dict[str, Any]  # of the family, without the seed
    numbers: dict[str, float]  # NUMBERS
    scales: dict[str, float | None]  # SCALES
    complexity_name: str
    reward_dim: int
    coordinates: dict[str, Any]  # COORDINATES
    fits: dict[tuple[str, str], Fit]  # (arm, choice) -> fit

    @property
    def n_pairs(self) -> int:
        """N."""
        return int(self.numbers["n_pairs"])

    @property
    def kind(self) -> str:
        """The family, and of automata which: 'automaton modulo'."""
        return kind_of(self.family, self.settings)

    @property
    def place(self) -> dict[str, Any]:
        """Everything that is held fixed when only N changes."""
        return {"family": self.family, **self.settings, **self.coordinates}

    @property
    def setting(self) -> tuple[tuple[str, Any], ...]:
        """`place` as a key."""
        return tuple(sorted(self.place.items()))

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that were run, in the order of the file."""
        return tuple(dict.fromkeys(arm for arm, _ in self.fits))


@dataclass(frozen=True)
class Ratio:
    """How many times the pairs an offline arm needs to reach one KL. None: not reached."""

    family: str
    setting: dict[str, Any]
    complexity: float | None
    sharpness: float
    horizon: int
    choice: str
    offline_arm: str
    online_arm: str
    target_kl: float  # nats
    n_online: float | None
    n_offline: float | None
    ratio: float | None
    low: float | None  # 95 % bootstrap over replicates
    high: float | None
    bound: str  # one of BOUNDS
    replicates: int

    @property
    def kind(self) -> str:
        """As `Cell.kind`."""
        return kind_of(self.family, self.setting)


@dataclass(frozen=True, eq=False)
class SweepRecord:
    """A sweep folder. planned: cells of the grid; there: those that are stored."""

    name: str
    cells: tuple[Cell, ...]  # cells that two blocks share are one
    planned: int
    there: int
    rows: int
    ratios: tuple[Ratio, ...] | None

    def __len__(self) -> int:
        return self.rows


def kind_of(family: str, settings: dict[str, Any]) -> str:
    """'walsh'; 'automaton modulo'."""
    kind = settings.get("kind")
    return f"{family} {kind}" if isinstance(kind, str) else family


def load_sweep(path: Path) -> SweepRecord:
    """A sweep folder: grid.json and the cells that it names, as far as they are there.

    Raises InputError for a folder of another version, without any cell, or with a file that cannot
    be read; the message names the file and the column.
    """
    place = path / "grid.json"
    grid = Fields(read_json(place), place)
    version = grid.body.get("version")
    if version != VERSION:
        raise InputError(
            f"{place}: a sweep of version {version!r}; this reads version {VERSION}. "
            "Run the sweep again into a new folder"
        )
    planned = [Fields(row, place, f"cell {i}") for i, row in enumerate(grid.items("cells"))]
    files = [path / "cells" / row.text("file") for row in planned]
    there = [file for file in files if file.exists()]
    if not there:
        raise InputError(f"{path / 'cells'}: holds none of the {len(files)} cells of {place}")
    loaded = [_load_cell(file) for file in there]
    ratios = path / "efficiency.parquet"
    return SweepRecord(
        name=grid.text("name"),
        cells=_merged([cell for cell, _ in loaded]),
        planned=len(files),
        there=len(there),
        rows=sum(rows for _, rows in loaded),
        ratios=load_ratios(ratios) if ratios.exists() else None,
    )


def _merged(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Cells at one place and N, which two blocks of a grid share, become one with all arms."""
    out: dict[tuple, Cell] = {}
    for cell in cells:
        before = out.setdefault((cell.setting, cell.n_pairs), cell)
        for key, fit in cell.fits.items():
            before.fits.setdefault(key, fit)
    return tuple(out.values())


def _load_cell(path: Path) -> tuple[Cell, int]:
    """One cell and the number of its rows."""
    table = read_parquet(path, (*PER_CELL, *PER_FIT))
    if not table.num_rows:
        raise InputError(f"{path}: has no rows")
    first = {name: table.column(name)[0].as_py() for name in PER_CELL}
    for name in PER_CELL:
        if len(table.column(name).unique()) > 1:
            raise InputError(f"{path}: column {name!r} changes within the cell")
    cell = Cell(
        family=first["family"],
        block=first["block"],
        settings=_settings(first["settings"], path),
        numbers={name: float(_present(first, name, path)) for name in NUMBERS},
        scales={name: first[name] for name in SCALES},
        complexity_name=first["complexity_name"],
        reward_dim=int(_present(first, "reward_dim", path)),
        coordinates={name: _present(first, name, path) for name in COORDINATES},
        fits={},
    )
    for choice in CHOICES:
        rows = table.filter(pc.field(choice))
        for arm in rows.column("arm").unique().to_pylist():
            cell.fits[arm, choice] = _fit(rows.filter(pc.field("arm") == arm), arm, choice, path)
    return cell, table.num_rows


def _settings(text: str, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: column 'settings' is not JSON: {text!r:.80}") from error
    if not isinstance(body, dict):
        raise InputError(f"{path}: column 'settings' is not a JSON object: {text!r:.80}")
    return {key: value for key, value in body.items() if key not in ("seed", "family")}


def _present(row: dict[str, Any], name: str, path: Path) -> Any:
    if row[name] is None:
        raise InputError(f"{path}: column {name!r} is null")
    return row[name]


def _fit(rows: pa.Table, arm: str, choice: str, path: Path) -> Fit:
    """The rows of one arm under one choice, one a replicate, sorted by seed."""
    seeds = rows.column("seed").to_numpy()
    order = np.argsort(seeds, kind="stable")
    if len(np.unique(seeds)) != len(seeds):
        raise InputError(f"{path}: arm {arm!r} has a seed with two candidates that are {choice!r}")
    measures = {}
    for name in MEASURES:
        values = rows.column(name).to_numpy().astype(float)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: column {name!r} of arm {arm!r} holds what is not a number")
        measures[name] = values[order]
    ridges = set(rows.column("ridge").to_pylist())
    return Fit(
        arm=arm,
        choice=choice,
        seeds=seeds[order],
        measures=measures,
        best_of_n=_curves(rows, order),
        counts=tuple(int(n) for n in rows.column("best_of_n_counts")[0].as_py() or ()),
        ridge=ridges.pop() if len(ridges) == 1 else None,
        parameters=int(rows.column("n_parameters")[0].as_py()),
        rank=rows.column("jacobian_rank")[0].as_py(),
    )


def _curves(rows: pa.Table, order: np.ndarray) -> np.ndarray | None:
    """(R, counts) best-of-N rewards, or None where a row has none."""
    curves = [curve for curve in rows.column("best_of_n").to_pylist() if curve]
    if len(curves) < rows.num_rows or len({len(curve) for curve in curves}) != 1:
        return None
    return np.array(curves, dtype=float)[order]


def load_ratios(path: Path) -> tuple[Ratio, ...]:
    """The rows of an efficiency.parquet."""
    out = []
    for row in read_parquet(path, RATIO_KEYS).to_pylist():
        if row["bound"] not in BOUNDS:
            raise InputError(f"{path}: bound {row['bound']!r} is none of {', '.join(BOUNDS)}")
        fields: dict[str, Any] = {
            name: row[name] for name in RATIO_KEYS if name in Ratio.__dataclass_fields__
        }
        fields["setting"] = _settings(row["setting"], path)
        out.append(Ratio(**fields))
    return tuple(out)
