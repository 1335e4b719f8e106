"""`python -m theory sweep`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from theory.sweep.cells import Cell
from theory.sweep.grid import SHIPPED, Grid, load_grid

QUICK = SHIPPED / "quick.toml"


@dataclass(frozen=True)
class Sweep:
    """Measure the proper-learning gap over a grid of Walsh rewards.

    Reads a grid (TOML; the shipped quick grid if none is named) and writes DIR/grid.json and one
    parquet file a cell in DIR/cells, each whole or not at all. Started again it does only what is
    missing. Rows are (arm, ridge, replicate); best_ridge marks the ridge that was best in
    hindsight.

    Example: python -m theory sweep --out out/sweep
    """

    out: Path
    """Folder to write; it must be new, or made by the same grid."""
    grid: Annotated[Path, tyro.conf.Positional] = QUICK
    """Grid file (TOML)."""
    dry_run: bool = False
    """Check the grid, print its cells, write nothing."""

    def run(self) -> int:
        """0 when every cell is stored."""
        grid = load_grid(self.grid)
        console = Console(file=sys.stdout)
        if self.dry_run:
            for cell in grid.cells:
                print(f"{cell.name}: {', '.join(cell.arms)}")
            print(f"{len(grid.cells)} cells, {len(grid.cells[0].seeds)} replicates each")
            return 0
        from theory.sweep import load_cells, missing, prepare, run_cell, store

        prepare(self.out, grid)
        todo = missing(self.out, grid)
        _progress(grid, todo, lambda cell: store(self.out, cell, run_cell(cell)))
        rows = load_cells(self.out, grid).to_pylist()
        console.print(_summary(rows))
        print(f"{self.out}: {len(todo)} cells run, {len(grid.cells) - len(todo)} reused")
        return 0


def _progress(grid: Grid, todo: list[Cell], work: Callable[[Cell], object]) -> None:
    """Run `work` on every cell behind a bar on stderr with the cell's name and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("sweep", total=len(grid.cells), completed=len(grid.cells) - len(todo))
        for cell in todo:
            bar.update(task, description=f"sweep {cell.name}")
            work(cell)
            bar.advance(task)


def _summary(rows: list[dict[str, Any]]) -> Table:
    """Mean KL (standard error) of each arm at its best ridge, one line a cell.

    Unconverged: fits of all ridges whose gradient is left above the tolerance, of how many.
    """
    from theory.arms import TOLERANCE

    left: dict[tuple[str, str], list[bool]] = {}
    kls: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        converged = row["gradient"] <= TOLERANCE
        left.setdefault((row["cell"], row["arm"]), []).append(not converged)
        if row["best_ridge"]:
            kls.setdefault(row["cell"], {}).setdefault(row["arm"], []).append(row["kl"])
    table = Table(title="KL(P_pi || P*_r), nats, best ridge in hindsight (standard error)")
    for column in ("cell", "arm", "KL", "unconverged"):
        table.add_column(column, overflow="fold")
    for name, cell in kls.items():
        for i, (arm, values) in enumerate(cell.items()):
            fits = left[name, arm]
            missed = f"{sum(fits)} of {len(fits)}"
            table.add_row("" if i else name, arm, _mean_and_error(values), missed)
    return table


def _mean_and_error(values: list[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return f"{mean:.3f} ({(variance / len(values)) ** 0.5:.3f})"
