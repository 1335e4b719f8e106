"""`python -m theory check`: every claim of the paper, with its certificate and broken twins."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from theory.errors import InputError
from theory.outputs import check_output

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from theory.claims.base import Claim, ClaimResult


@dataclass(frozen=True)
class Check:
    """Check the paper's claims numerically on random token trees, and their broken twins.

    Reads nothing. Prints one table; writes --json if asked. Exit code 0 only if every certificate
    holds (within 1e-10) and every twin misses by at least 0.01 nats; 1 if not; 2 for bad input.

    Example: python -m theory check --claim theorem-2.2 --trials 50 --seed 1 --json check.json
    """

    claim: str | None = None
    """One of lemma-2.1, lemma-b.1, theorem-2.2, theorem-2.3, theorem-3.1; all if left out."""
    trials: int | None = None
    """Random instances a claim; each claim has its own default."""
    seed: int = 0
    """Trial i of a claim is a function of (seed, claim, i) alone."""
    json: Path | None = None
    """Write the results here; the folder is made if it is missing."""

    def run(self) -> int:
        """Run the checks; 0 if all hold and all twins fail, else 1. Raises InputError."""
        from theory.claims import CLAIMS, find

        claims = CLAIMS if self.claim is None else (find(self.claim),)
        self._check_input()
        results = self._results(claims)
        from rich.console import Console

        console = Console()
        console.print(_table(results), crop=False)
        for line in _remarks(results):
            console.print(line, markup=False, highlight=False)
        if self.json is not None:
            write_atomically(self.json, [result.to_json() for result in results])
        return 0 if all(result.passes for result in results) else 1

    def _check_input(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise InputError(f"--trials must be at least 1, got {self.trials}")
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0, got {self.seed}")
        if self.json is not None:
            check_output(self.json, "--json")

    def _results(self, claims: tuple[Claim, ...]) -> list[ClaimResult]:
        from theory.claims.base import run_claim

        results = []
        with _progress() as progress:
            total = sum(self.trials or claim.trials for claim in claims)
            bar = progress.add_task("check", total=total)
            for claim in claims:
                progress.update(bar, description=f"check {claim.name}")
                results.append(
                    run_claim(
                        claim,
                        trials=self.trials,
                        seed=self.seed,
                        on_trial=lambda: progress.advance(bar),
                    )
                )
        return results


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    return Progress(*columns, console=Console(stderr=True))


def _table(results: list[ClaimResult]) -> Table:
    from rich import box
    from rich.table import Table

    title = "The paper's claims (sides and residuals in nats)"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("claim", no_wrap=True)
    table.add_column("holds", no_wrap=True)
    for name in ("lhs", "rhs", "residual", "slack", "trials", "said", "twins"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        worst = result.worst
        table.add_row(
            result.claim.name,
            "yes" if result.holds else "NO",
            f"{worst.lhs:.4g}",
            f"{worst.rhs:.4g}",
            f"{worst.residual:.1e}",
            f"{worst.slack:.0e}",
            str(result.trials),
            str(result.nonvacuous),
            "\n".join(f"{t.violation:.3f}{'' if t.fails else '!'}" for t in result.twins),
        )
    table.caption = (
        "lhs, rhs: the two sides of the worst trial. said: trials that were not vacuous. "
        "twins: by how much each broken twin misses."
    )
    return table


def _remarks(results: list[ClaimResult]) -> list[str]:
    """What each twin broke, and what went wrong if anything did."""
    lines = []
    for result in results:
        for twin in result.twins:
            verdict = "fails, as it must" if twin.fails else "DOES NOT FAIL by 0.01 nats"
            lines.append(
                f"{result.claim.name} twin {verdict} ({twin.violation:.3g} nats): {twin.assumption}"
            )
        if not result.worst.holds:
            lines.append(f"{result.claim.name} DOES NOT HOLD at: {result.worst.part}")
        if result.nonvacuous == 0:
            lines.append(f"{result.claim.name}: every trial was vacuous, which shows nothing")
    return lines


def write_atomically(path: Path, body: object) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(jsonlib.dumps(body, indent=1, sort_keys=False, allow_nan=False) + "\n")
    partial.replace(path)
