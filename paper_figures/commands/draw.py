"""`python -m paper_figures draw`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Draw:
    """Draw every figure that a folder of records can fill, each as SVG and PNG.

    Reads DIR as `report` does. Writes FOLDER/<figure>.svg and FOLDER/<figure>.png; the same records
    give the same bytes.

    Example: python -m paper_figures draw out/demo --out docs
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder to draw from."""
    out: Path
    """Where the files go."""

    def run(self) -> int:
        """Exit code 0 if at least one figure was drawn, 1 if the records fill none."""
        from paper_figures.records import load_folder
        from paper_figures.report import pictures, write_pictures

        found = pictures(load_folder(self.folder))
        for path in write_pictures(found, self.out):
            print(path)
        if not found:
            print(f"{self.folder}: its records fill no figure")
        return 0 if found else 1
