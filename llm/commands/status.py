"""`python -m llm status`: what of a study is done, begun, failed and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Status:
    """List the stages of a study folder with their state, wall time and, if failed, the reason.

    Example: python -m llm status out/study
    """

    study: Annotated[Path, tyro.conf.Positional]
    """A folder made by `python -m llm study`."""

    def run(self) -> int:
        """Exit code: 0 when nothing failed, 1 otherwise, 2 for a folder that holds no study."""
        from rich.console import Console
        from rich.table import Table

        from llm.records import states

        found = states(self.study)
        table = Table(title=str(self.study))
        for column in ("stage", "state", "seconds"):
            table.add_column(column)
        for name, (state, seconds) in found.items():
            table.add_row(name, state, "" if seconds is None else f"{seconds:.0f}")
        Console().print(table)
        return 1 if any(state.startswith("failed") for state, _ in found.values()) else 0
