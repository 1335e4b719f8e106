"""`python -m theory check`: every claim of the paper, with its certificate and broken twins."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from theory.errors import InputError
from theory.outputs import check_output

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from theory.certificate import Twin
    from theory.claims.base import Claim, ClaimResult


@dataclass(frozen=True)
class Check:
    """Check the paper's claims on random token trees, and their broken twins.

    Reads nothing, or the file of --replay. Prints one table; writes --json if asked. Exit code 0
    only if every certificate holds (within 1e-10; exactly, in rational arithmetic), at least half
    of each claim's trials say something (are not vacuous) and every twin misses by at least 0.01
    nats; 1 if not; 2 for bad input. theory/claims/README.md says what each claim states and what
    the paper's proof leaves out.

    Example: python -m theory check --claim theorem-2.2 --trials 50 --seed 1 --json check.json

    Example: python -m theory check --arithmetic rational --trials 200

    Example: python -m theory check --replay theory/claims/twins/theorem-2.2/unscaled.json
    """

    claim: str | None = None
    """One claim by name; all if left out. An unknown name lists the known ones."""
    trials: int | None = None
    """Random instances a claim; each claim has its own default."""
    seed: int = 0
    """Trial i of a claim is a function of (seed, claim, i) alone."""
    trial: int | None = None
    """Run this one trial alone, and print each of its certificates (needs --claim)."""
    arithmetic: Literal["float", "rational"] = "float"
    """rational: Theorems 2.2, 2.3 and 3.1 on lists, in exact fractions, with residual 0."""
    replay: Path | None = None
    """Run one broken twin from its file instead; edit a copy of the file to try another."""
    json: Path | None = None
    """Write the results here; the folder is made if it is missing."""

    def run(self) -> int:
        """Run the checks; 0 if all hold and all twins fail, else 1. Raises InputError."""
        self._check_input()
        if self.replay is not None:
            return self._replay(self.replay)
        from theory.claims import find

        known = _known(self.arithmetic)
        claims = known if self.claim is None else (find(self.claim, known),)
        if self.trial is not None:
            return _one_trial(claims[0], self.seed, self.trial)
        results = self._results(claims)
        from rich.console import Console

        console = Console()
        console.print(_table(results), crop=False)
        for line in _remarks(results, self.seed):
            console.print(line, markup=False, highlight=False)
        if self.json is not None:
            write_atomically(self.json, [result.to_json(self.arithmetic) for result in results])
        return 0 if all(result.passes for result in results) else 1

    def _check_input(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise InputError(f"--trials must be at least 1, got {self.trials}")
        if self.seed < 0:
            raise InputError(f"--seed must be at least 0, got {self.seed}")
        if self.trial is not None and self.trial < 0:
            raise InputError(f"--trial must be at least 0, got {self.trial}")
        if self.trial is not None and self.claim is None:
            raise InputError("--trial runs one trial of one claim: say which with --claim")
        if self.trial is not None and self.trials is not None:
            raise InputError(f"--trial runs one trial: leave out --trials {self.trials}")
        if self.replay is not None:
            self._check_replay_alone()
        if self.trial is not None and self.json is not None:
            raise InputError("--json records whole checks: leave it out with --trial")
        if self.json is not None:
            check_output(self.json, "--json")

    def _check_replay_alone(self) -> None:
        """A replay reads everything from its file: other options would be ignored."""
        others = {
            "--claim": self.claim,
            "--trials": self.trials,
            "--trial": self.trial,
            "--seed": self.seed or None,
            "--arithmetic": None if self.arithmetic == "float" else self.arithmetic,
            "--json": self.json,
        }
        for name, value in others.items():
            if value is not None:
                raise InputError(f"--replay reads all from its file: leave out {name} {value}")

    def _replay(self, path: Path) -> int:
        """One twin from a file; 0 if it misses clearly, as it must."""
        from theory.claims import find
        from theory.claims.base import run_twin
        from theory.claims.replay import load_replay

        replay = load_replay(path)
        # The twins in exact fractions are named exact-..., so that one look decides.
        known = _known("rational" if replay.twin.startswith("exact-") else "float")
        broken = find(replay.claim, known).twin(replay.twin)
        print(_twin_line(replay.claim, twin := run_twin(broken, replay)))
        return 0 if twin.fails else 1

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


def _known(arithmetic: str) -> tuple[Claim, ...]:
    """The claims of one arithmetic."""
    if arithmetic == "rational":
        from theory.claims.rational import CLAIMS
    else:
        from theory.claims import CLAIMS
    return CLAIMS


def _one_trial(claim: Claim, seed: int, index: int) -> int:
    """Every certificate of one trial, largest residual first; 0 if all hold."""
    from theory.claims.base import run_trial

    trial = run_trial(claim, index, seed=seed)
    print(f"{claim.name}, seed {seed}, trial {index}{' (vacuous)' if trial.vacuous else ''}")
    for c in sorted(trial.certificates, key=lambda c: c.residual, reverse=True):
        print(f"  {'holds' if c.holds else 'FAILS'}  {c.residual:.1e}  {c.part}")
    return 0 if all(c.holds for c in trial.certificates) else 1


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
    for name in ("lhs", "rhs", "residual", "said", "twins", "miss"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        worst, twins = result.worst, result.twins
        table.add_row(
            result.claim.name,
            "yes" if result.holds else "NO",
            f"{worst.lhs:.2g}",
            f"{worst.rhs:.2g}",
            f"{worst.residual:.1e}",
            f"{result.nonvacuous}/{result.trials}",
            f"{sum(twin.fails for twin in twins)}/{len(twins)}",
            f"{min((twin.violation for twin in twins), default=float('nan')):.2g}",
        )
    table.caption = (
        "lhs, rhs: the two sides of the worst trial, equal within "
        f"{max((r.worst.slack for r in results), default=0.0):g}. said: trials that were not "
        "vacuous (at least half must be) / trials. twins: broken twins that fail, as they must; "
        "miss: by the least of them. "
        "theory/claims/README.md says what each breaks."
    )
    return table


def _remarks(results: list[ClaimResult], seed: int) -> list[str]:
    """What was drawn, what each twin broke if one claim was asked for, and what went wrong."""
    from theory.claims.base import summary

    lines = []
    for result in results:
        name = result.claim.name
        if result.drawn:
            parts = ", ".join(f"{key} {value}" for key, value in summary(result.drawn).items())
            lines.append(f"{name} drew: {parts}")
        shown = [twin for twin in result.twins if len(results) == 1 or not twin.fails]
        lines += [_twin_line(name, twin) for twin in shown]
        if not result.worst.holds:
            lines.append(
                f"{name} DOES NOT HOLD in trial {result.worst_trial} of seed {seed}, at: "
                f"{result.worst.part} (run it again with --claim {name} --seed {seed} "
                f"--trial {result.worst_trial})"
            )
        if not result.said_enough:
            lines.append(
                f"{name} SAYS TOO LITTLE: {result.nonvacuous} of {result.trials} trials were not "
                "vacuous, at least half must be"
            )
    return lines


def _twin_line(claim: str, twin: Twin) -> str:
    verdict = "fails, as it must" if twin.fails else "DOES NOT FAIL by 0.01 nats"
    return f"{claim} twin {twin.name} {verdict} ({twin.violation:.3g} nats): {twin.assumption}"


def write_atomically(path: Path, body: object) -> None:
    """Write JSON whole or not at all."""
    text = jsonlib.dumps(body, indent=1, sort_keys=False, allow_nan=False) + "\n"
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
