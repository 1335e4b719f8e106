"""`python -m paper_figures sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Sweep:
    """Draw the pictures of one sweep folder, each as SVG and PNG, and print what they say.

    Reads DIR/grid.json, DIR/cells/*.parquet and DIR/efficiency.parquet, nothing else. Writes
    FOLDER/sweep.* (the overview) and FOLDER/sweep-*.*; the same records give the same bytes.

    Example: python -m paper_figures sweep out/demo/sweep --out docs
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that `python -m theory sweep --out` wrote."""
    out: Path
    """Where the files go."""
    overview: bool = False
    """Draw the overview alone."""

    def run(self) -> int:
        """Exit code 0 if at least one picture was drawn, 1 if the cells fill none."""
        from paper_figures.report import write_pictures
        from paper_figures.sweep import sweep_groups
        from paper_figures.sweep_records import load_sweep

        sweep = load_sweep(self.folder)
        groups = sweep_groups(sweep)
        for group in groups:
            for sentence in group.sentences:
                print(sentence)
        found = [p for group in groups for p in (group.picture, group.more) if p is not None]
        shown = [p for p in found if p.name == "sweep"] if self.overview else found
        for path in write_pictures(shown, self.out):
            print(path)
        if not shown:
            print(f"{self.folder}: its cells fill no picture")
        return 0 if shown else 1
