"""`python -m theory sweep`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

from theory.errors import InputError

if TYPE_CHECKING:
    from theory.sweep import Cell, Grid


@dataclass(frozen=True)
class Sweep:
    """Measure the proper-learning gap over a grid of ground truths, arms and data.

    Reads a grid (TOML; or the name of a shipped one: quick, paper, wide) and writes DIR/grid.json,
    one parquet file a cell in DIR/cells, each whole or not at all, and, when all are there,
    DIR/efficiency.parquet. Started again it does only what is missing; a torn file is named and its
    cell run again. Rows are (arm, candidate, replicate).

    Example: python -m theory sweep quick --out out/sweep
    """

    out: Path | None = None
    """Folder to write; it must be new, or made by the same grid."""
    grid: Annotated[str, tyro.conf.Positional] = "quick"
    """Grid file (TOML), or the name of a shipped grid."""
    dry_run: bool = False
    """Check the grid, print its cells, fits and an estimate of the time, write nothing."""
    cluster: str | None = None
    """Run cells as Ray tasks: the address of a cluster (host:port, or auto), or local."""
    workers: int | None = None
    """With --cluster: cells at a time; the cluster's processors if left out."""

    def run(self) -> int:
        """0 when every cell is stored, 1 when one could not be computed."""
        from theory.sweep.data import check_memory
        from theory.sweep.files import missing, prepare
        from theory.sweep.grid import find_grid, load_grid

        self._check_options()
        grid = load_grid(find_grid(self.grid))
        for cell in grid.cells:
            check_memory(cell)
        if self.dry_run or self.out is None:
            return _dry_run(grid)
        if self.cluster is not None:
            from theory.cluster import check_cluster

            check_cluster(self.cluster)
        prepare(self.out, grid)
        todo, torn = missing(self.out, grid)
        for line in torn:
            print(line, file=sys.stderr)
        failed = _progress(self.out, grid, todo, self._results(todo))
        done = len(todo) - len(failed)
        print(f"{self.out}: {done} cells run, {len(grid.cells) - len(todo)} reused")
        if failed:
            print(f"{len(failed)} cells failed: {', '.join(failed)}", file=sys.stderr)
            return 1
        _summary(self.out, grid)
        return 0

    def _check_options(self) -> None:
        if self.out is None and not self.dry_run:
            raise InputError("--out is needed: the folder to write")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers must be at least 1, got {self.workers}")
        if self.workers is not None and self.cluster is None:
            raise InputError("--workers goes with --cluster; without it one cell runs at a time")

    def _results(self, todo: list[Cell]) -> Iterator[tuple[Cell, bytes | Exception]]:
        """(cell, the bytes of its file or the error in its place)."""
        if self.cluster is not None and todo:
            from theory.cluster import run_cells

            yield from run_cells(todo, self.cluster, workers=self.workers)
            return
        from theory.fit import ConvergenceError
        from theory.sweep.files import to_bytes
        from theory.sweep.run import run_cell

        for cell in todo:
            try:
                yield cell, to_bytes(run_cell(cell))
            except (ConvergenceError, InputError) as error:
                yield cell, error


def _dry_run(grid: Grid) -> int:
    from theory.sweep.cost import estimate

    for cell in grid.cells:
        print(f"{cell.name}: {', '.join(cell.arms)}")
    found = estimate(grid)
    print(
        f"{found.cells} cells, {len(grid.cells[0].seeds)} replicates each, {found.fits:,} fits; "
        f"about {_duration(found.seconds)} on two cores"
    )
    return 0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _progress(
    out: Path, grid: Grid, todo: list[Cell], results: Iterator[tuple[Cell, bytes | Exception]]
) -> list[str]:
    """Store results as they come, behind a bar on stderr; the names of cells that failed."""
    from theory.sweep.files import store

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    failed = []
    with Progress(*columns, console=Console(stderr=True)) as bar:
        reused = len(grid.cells) - len(todo)
        task = bar.add_task("sweep", total=len(grid.cells), completed=reused)
        left = [cell.name for cell in todo]
        bar.update(task, description=f"sweep {left[0] if left else ''}")
        for cell, result in results:
            left.remove(cell.name)
            if isinstance(result, bytes):
                store(out, cell, result)
            else:
                failed.append(cell.name)
                bar.console.print(f"cell {cell.name} failed: {result}", soft_wrap=True)
            bar.update(task, advance=1, description=f"sweep {left[0] if left else ''}")
    return failed


def _summary(out: Path, grid: Grid) -> None:
    """Print the results of all cells and write the data efficiency."""
    from theory.sweep.files import load_cells
    from theory.sweep.summary import kl_table, ratio_table, write_efficiency

    rows = load_cells(out, grid)
    console = Console(file=sys.stdout)
    console.print(kl_table(rows))
    efficiency = write_efficiency(out, rows)
    if efficiency.num_rows:
        console.print(ratio_table(efficiency))
