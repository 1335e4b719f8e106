"""`python -m theory forecast`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from theory.outputs import check_output
from theory.predictions import Prediction, save


@dataclass(frozen=True)
class Forecast:
    """Predict the quantities of Figs. 3 and 9 for a task, at the toy rung.

    Reads task.json, simulates the five policies and three reward models with finite data on that
    very task (tabular policies, exact evaluation, many replicates), and writes predictions.json.
    About 20 seconds.

    Example: python -m theory forecast fig3 fig9 --task out/task.json --out out/predictions.json
    """

    figures: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Which figures: fig3, fig9."""
    task: Path
    """Task file, made by `python -m theory task`."""
    out: Path
    """File to write."""
    replicates: int = 64
    """Independent data sets."""
    n_pairs: int = 1024
    """Preference pairs of each."""
    seed: int = 0
    """Of the data."""

    def run(self) -> int:
        """0 when the file is written."""
        from theory.forecast import check_figures, forecast, header
        from theory.tasks import load_task
        from theory.toy import ToyConfig, simulate

        figures = check_figures(self.figures)
        config = ToyConfig(replicates=self.replicates, n_pairs=self.n_pairs, seed=self.seed)
        task = load_task(self.task)
        check_output(self.out, "--out")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            stage = bar.add_task("forecast: compile", total=config.replicates + 2)
            result = simulate(
                task,
                config,
                lambda done: bar.update(stage, completed=done, description="forecast: replicates"),
            )
            predictions = forecast(task, figures, config, result)
            save(self.out, "predictions", predictions, **header(task, config))
            bar.update(stage, completed=config.replicates + 2)
        Console(file=sys.stdout).print(_table(predictions))
        print(f"{self.out}: {len(predictions)} predictions")
        return 0


def _table(predictions: list[Prediction]) -> Table:
    table = Table(title="Forecast at the toy rung (mean, standard error over replicates)")
    for column in ("figure", "quantity", "predicted", "value"):
        table.add_column(column, overflow="fold")
    for p in predictions:
        table.add_row(
            p.figure, escape(p.quantity), f"{p.relation} 0", f"{p.value:+.4f} ({p.error:.4f})"
        )
    return table
