"""`python -m paper_figures report`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Draw one self-contained page out of a folder of records, and print the verdict table.

    Reads DIR, either a demo folder (check.json, sweep/, task.json, predictions.json, study/) or a
    study folder alone (study.json and what lies beside it); says plainly what is absent.
    Writes report.html (into DIR, or where --out says).

    Example: python -m paper_figures report out/demo
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder to report on."""
    out: Path | None = None
    """Where the page goes; DIR/report.html without it."""

    def run(self) -> int:
        """Exit code 0 once the page is written, whatever the verdicts are."""
        from rich.console import Console

        from paper_figures.report import all_verdicts, write_report
        from paper_figures.terminal import verdict_table

        out = self.out or self.folder / "report.html"
        folder = write_report(self.folder, out)
        console = Console()
        console.print(verdict_table(all_verdicts(folder)))
        if folder.study is not None and folder.study.scale_note:
            console.print(folder.study.scale_note)
        if folder.bridge is not None:
            counts = Counter(row.outcome for row in folder.bridge.verdicts)
            print("bridge: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
        print(f"report: {out}")
        return 0
