"""`python -m theory forecast`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from theory.outputs import check_output
from theory.predictions import save

if TYPE_CHECKING:
    from theory.forecast import Row


@dataclass(frozen=True)
class Forecast:
    """Predict the quantities of Figs. 3 to 10 from their twins, at the toy rung.

    Every twin is the figure's comparison on a small tree: policies and reward models trained on
    finite data, many replicates, exact evaluation. Figs. 3, 8, 9 and 10 are run on the task (by
    default the one that ships), the others on trees of their own. Writes predictions.json and
    says which figures their twins reproduce. Figs. 3 and 9 take about 20 seconds, all about 3
    minutes.

    Example: python -m theory forecast fig3 fig9 --task out/task.json --out out/predictions.json
    """

    figures: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Which figures: fig3 to fig10."""
    out: Path
    """File to write."""
    task: Path | None = None
    """Task file, made by `python -m theory task`. Default: the task made without options."""
    replicates: int = 64
    """Independent data sets."""
    n_pairs: int = 1024
    """Preference pairs of each."""
    seed: int = 0
    """Of the data."""

    def run(self) -> int:
        """0 when the file is written."""
        from theory.forecast import check_figures, forecast, header, read_task
        from theory.toy import ToyConfig

        figures = check_figures(self.figures)
        config = ToyConfig(replicates=self.replicates, n_pairs=self.n_pairs, seed=self.seed)
        task = read_task(self.task)
        check_output(self.out, "--out")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            stages = {}

            def progress(what: str, done: int) -> None:
                if what not in stages:
                    stages[what] = bars.add_task(what, total=config.replicates)
                bars.update(stages[what], completed=done)

            rows = forecast(task, figures, config, progress)
        save(self.out, "predictions", [row.prediction for row in rows], **header(task, config))
        Console(file=sys.stdout).print(_table(rows))
        _print_summary(rows)
        print(f"{self.out}: {len(rows)} predictions")
        return 0


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="Forecast at the toy rung (mean, standard error over replicates)")
    for column in ("figure", "quantity", "predicted", "value", "reproduced?"):
        table.add_column(column, overflow="fold")
    for row in rows:
        p = row.prediction
        relation = f"equal 0 +- {p.margin:g}" if p.relation == "equal" else f"{p.relation} 0"
        value = f"{p.value:+.4f} ({p.error:.4f})"
        table.add_row(p.figure, escape(p.quantity), relation, value, row.reproduced)
    return table


def _print_summary(rows: Sequence[Row]) -> None:
    """Which figures are reproduced, and what the twins say where they are not, or elsewhere."""
    from theory.forecast import summary

    print("Does the twin reproduce the paper's figure?")
    for figure, verdict in summary(rows).items():
        print(f"  {figure}: {verdict}")
    for row in rows:
        if row.reproduced != "yes" or row.elsewhere:
            print(f"{row.prediction.figure}, {row.prediction.quantity}: {row.prediction.note}")
