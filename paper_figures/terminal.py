"""The verdict table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from paper_figures.prose import verdict_row
from theory.predictions import Verdict

COLOURS = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a verdict: figure, claim, predicted, measured with interval, verdict."""
    table = Table(title="Verdicts" if verdicts else "Verdicts: none in this folder")
    for column in ("figure", "predicted claim", "predicted", "measured"):
        table.add_column(column)
    table.add_column("verdict", min_width=12)
    for row in map(verdict_row, verdicts):
        colour = COLOURS.get(row.outcome, "dim")
        table.add_row(
            row.figure,
            escape(row.claim),
            row.predicted,
            escape(f"{row.measured} {row.interval}".strip()),
            f"[{colour}]{row.outcome}[/]",
        )
    return table
