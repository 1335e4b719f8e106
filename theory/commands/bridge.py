"""`python -m theory bridge`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from theory.errors import InputError
from theory.outputs import check_output
from theory.predictions import RecordError

if TYPE_CHECKING:
    from rich.console import Console

    from theory.bridge import Bridge as Plan
    from theory.bridge import Cell

Row = dict[str, Any]


@dataclass(frozen=True)
class Bridge:
    """Hold toy forecasts against small transformers, exactly: two families, horizons, data sizes.

    For every cell: export its task, forecast it, train it with `python -m llm study`, and compute
    from the models' own probabilities the KL to the optimum, the regret, both roads' win rates and
    how far Theorem 2.2 is missed. Prints these and a verdict on every prediction, the contradicted
    ones last. Writes OUT/<cell>/ and OUT/bridge.parquet, one line a number
    (its columns stand in theory/bridge_rows.py). Killed and started again, it goes on where it
    was. Exit code 0; 1 where a cell failed or a study recorded other numbers; 2 for bad input.

    Example: python -m theory bridge --out out/bridge
    """

    out: Path
    """Folder to write."""
    cells: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Only this cell ("walsh-h6-n1024"); can be repeated. Default: all nine."""
    seeds: int = 3
    """Training seeds of each cell; SFT is shared."""
    replicates: int = 64
    """Data sets of each forecast."""
    jobs: int | None = None
    """Stages that train at a time. Default: one a CPU core. Numbers do not depend on it."""

    def run(self) -> int:
        """0 when every cell is done and every number agrees."""
        from theory.bridge import Bridge as Plan
        from theory.bridge import choose

        for name, least in (("seeds", 1), ("replicates", 2), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} must be at least {least}, got {value}")
        cells = choose(self.cells)
        check_output(self.out / "bridge.parquet", "--out")
        return run_cells(Plan(self.out, self.seeds, self.replicates, self.jobs), cells)


def run_cells(plan: Plan, cells: tuple[Cell, ...]) -> int:
    """Run what is not done, cell by cell; the table holds what is finished at any time.

    Cells that are not asked for, or do not finish, keep the rows that the table has of them.
    """
    from rich.console import Console

    from theory.bridge import predict, train
    from theory.bridge_rows import TABLE, load_rows, merged, rows_of, save_rows

    err, rows, failed = Console(stderr=True, soft_wrap=True), list[Row](), list[str]()
    earlier = load_rows(plan.out / TABLE)
    for place, cell in enumerate(cells, 1):
        err.print(f"cell {place} of {len(cells)}, {cell.name}: {' '.join(cell.figures)}")
        if not predict(plan, cell, _saying(err)):
            err.print("  its predictions stand")
        code = train(plan, cell)
        if code != 0:
            err.print(f"  its study ended with {code}; see {plan.folder(cell) / 'study.log'}")
            failed.append(cell.name)
        if code not in (0, 1):
            continue
        try:  # a study with a failed stage may still have most of its numbers
            rows += rows_of(plan, cell)
        except (InputError, RecordError) as error:
            err.print(f"  its numbers cannot be read: {error}", markup=False)
            failed.append(cell.name)
        else:
            save_rows(plan.out / TABLE, merged(earlier, rows))
    wrong = _print(rows, plan.seeds) if rows else []
    if failed:
        print(f"failed: {', '.join(dict.fromkeys(failed))}")
        known = {row["cell"] for row in earlier} - {row["cell"] for row in rows}
        if stale := [name for name in dict.fromkeys(failed) if name in known]:
            print(f"{TABLE} keeps an earlier run's numbers of: {', '.join(stale)}")
    return 1 if failed or wrong else 0


def _saying(err: Console) -> Callable[[str, int], object]:
    """Says what is forecast, as it begins."""
    return lambda what, done: done or err.print(f"  forecast {what}")


def _print(rows: list[Row], seeds: int) -> list[Row]:
    """Everything that the cells say; the rows that differ from what a study recorded."""
    from theory.bridge_text import lines_of
    from theory.exact import AGREES

    for line in lines_of(rows, seeds):
        print(line)
    wrong = [r for r in rows if r["measure"] == "recorded_gap" and not r["value"] <= AGREES]
    for row in wrong:
        print(f"{row['cell']}, {row['name']}: the study recorded other numbers")
    return wrong
