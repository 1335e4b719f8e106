"""`python -m theory bridge`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
SHOWN = ("sft", "dpo", "online_dpo_sft", "online_dpo_dpo", "local_rm_policy")
ROADS = {
    "other seed: dpo to dpo": "DPO, another seed",
    "other seed: local_rm to local_rm": "local model, another seed",
    "other class: local_rm to dpo": "local model to DPO",
}
MARKS = {"supported": "yes", "contradicted": "NO", "inconclusive": "?"}


@dataclass(frozen=True)
class Bridge:
    """Hold toy forecasts against small transformers, exactly: two families, horizons, data sizes.

    For every cell: export its task, forecast it, train it with `python -m llm study`, and compute
    from the models' own probabilities the KL to the optimum, the regret, both roads' win rates and
    how far Theorem 2.2 is missed. Writes OUT/<cell>/ and OUT/bridge.parquet, one line a number
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
    """Run what is not done, cell by cell; the table holds what is finished at any time."""
    from rich.console import Console

    from theory.bridge import predict, train
    from theory.bridge_rows import TABLE, rows_of, save_rows

    err, rows, failed = Console(stderr=True), list[Row](), list[str]()
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
            save_rows(plan.out / TABLE, rows)
    wrong = _print(Console(), rows, plan.seeds) if rows else []
    if failed:
        print(f"failed: {', '.join(dict.fromkeys(failed))}")
    return 1 if failed or wrong else 0


def _saying(err: Console) -> Callable[[str, int], object]:
    """Says what is forecast, as it begins."""
    return lambda what, done: done or err.print(f"  forecast {what}")


def _print(console: Console, rows: list[Row], seeds: int) -> list[Row]:
    """Three tables and what they rest on; the rows that differ from what a study recorded."""
    from theory.exact import AGREES

    _print_policies(console, rows, seeds)
    _print_roads(console, rows)
    _print_verdicts(console, rows)
    _print_assumptions(console, rows)
    wrong = [r for r in rows if r["measure"] == "recorded_gap" and not r["value"] <= AGREES]
    for row in wrong:
        print(f"{row['cell']}, {row['name']}: the study recorded other numbers")
    return wrong


def _means(rows: Iterable[Row]) -> dict[tuple[str, str], float]:
    """(name, measure) -> mean over seeds of what stands on the main branch at the main size."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if not row["branch"] and not row["size"]:
            found.setdefault((row["name"], row["measure"]), []).append(row["value"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def _by_cell(rows: list[Row], part: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == part:
            found.setdefault(row["cell"], []).append(row)
    return found


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "claim" else "right")
    return table


def _print_policies(console: Console, rows: list[Row], seeds: int) -> None:
    title = f"KL to the optimum, nats / win rate, exact; mean over {seeds} seeds"
    table = _table(title, "cell", *(name.removesuffix("_policy") for name in SHOWN))
    for cell, found in _by_cell(rows, "policy").items():
        means = _means(found)
        values = [
            f"{means[name, 'kl_to_optimum']:.2f} / {means[name, 'win_rate']:.3f}"
            if (name, "win_rate") in means
            else "-"
            for name in SHOWN
        ]
        table.add_row(cell, *values)
    console.print(table)


def _print_roads(console: Console, rows: list[Row]) -> None:
    title = "Theorem 2.2 says 0: KL(soft RL of the reward model || the policy) and back, nats"
    table = _table(title, "cell", *ROADS.values())
    for cell, found in _by_cell(rows, "theorem_2_2").items():
        means = _means(found)
        values = [
            f"{means[name, 'kl']:.3f}, {means[name, 'kl_back']:.3f}"
            if (name, "kl") in means
            else "-"
            for name in ROADS
        ]
        table.add_row(cell, *values)
    console.print(table)


def _print_verdicts(console: Console, rows: list[Row]) -> None:
    """A line a prediction, a column a cell: forecast, measured, and whether it is supported."""
    from rich.markup import escape

    cells = _by_cell(rows, "verdict")
    title = (
        "Forecast and measured; the paper's claim is supported (yes), contradicted (NO), open (?)"
    )
    table = _table(title, "fig", "claim", *(cell.replace("-", " ") for cell in cells))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for cell, found in cells.items():
        for row in found:
            claim = "> 0" if row["relation"] == "greater" else f"within {row['margin']}"
            measured = "-" if row["value"] is None else f"{row['value']:+.3f}"
            mark = MARKS.get(row["outcome"], row["outcome"])
            words = f"{row['predicted']:+.3f} {measured} {mark}"
            lines.setdefault((row["measure"], f"{row['name']} {claim}"), {})[cell] = words
    for (figure, claim), found in lines.items():
        shown = (found.get(cell, "") for cell in cells)
        table.add_row(figure.removeprefix("fig"), escape(claim), *shown)
    console.print(table)


def _print_assumptions(console: Console, rows: list[Row]) -> None:
    """What the toy forecast assumes and this rung breaks, as numbers."""
    title = (
        "Assumptions, measured: the forecast's (SFT is the reference, all mass on the task, the "
        "global reward model knows its features), Theorem 2.2's (a maximum, and it is reached)"
    )
    names = ("KL(SFT || reference)", "DPO off the task", "accuracy: global, local, DPO model")
    names += ("best possible", "prompts with a maximiser", "loss: least, DPO, local model")
    table = _table(title, "cell", *names)
    policies, fits = _by_cell(rows, "policy"), _by_cell(rows, "likelihood")
    for cell, found in policies.items():
        means = _means([*found, *fits.get(cell, [])])

        def show(digits: int, *keys: tuple[str, str], means: Any = means) -> str:
            return ", ".join(f"{means[k]:.{digits}f}" if k in means else "-" for k in keys)

        fit = "training pairs"
        models = [(name, "val_accuracy") for name in ("global_rm", "local_rm", "dpo_rm")]
        losses = [(fit, name) for name in ("least_loss", "dpo_loss", "local_rm_loss")]
        table.add_row(
            cell,
            show(3, ("sft", "kl_to_reference")),
            show(3, ("dpo", "mass_off_task")),
            show(3, *models),
            show(3, ("global_rm", "best_accuracy")),
            show(0, (fit, "prompts_with_maximiser")),
            show(3, *losses),
        )
    console.print(table)
