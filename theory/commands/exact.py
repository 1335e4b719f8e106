"""`python -m theory exact`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from theory.outputs import check_output

if TYPE_CHECKING:
    from rich.console import Console

    from theory.exact import Likelihood, Measured, Violation

KINDS = {
    "same fit": "the RL step alone (zero up to rounding)",
    "other seed": "two fits of one likelihood over one class",
    "other class": "reward beta log pi without a reference, policy DPO's",
}


@dataclass(frozen=True)
class Exact:
    """Exact numbers for the trained models of a study on a task, and Theorem 2.2 on them.

    Reads the folder that `python -m llm study` wrote. Prints for every policy its KL to the
    optimum, soft regret, win rate and mass off the task, from the log-probability that it gives to
    every completion; then how far soft RL of an isomorphic reward model ends from the policy of
    maximum likelihood, which Theorem 2.2 says is nowhere, and which of its assumptions the run
    breaks. Exit code 0; 1 where the study's own numbers are not these; 2 for bad input.

    Example: python -m theory exact out/study --json out/exact.json
    """

    study: Annotated[Path, tyro.conf.Positional]
    """The study's folder."""
    json: Path | None = None
    """Write everything here; the folder is made if it is missing."""

    def run(self) -> int:
        """0 when every number agrees with the study's own."""
        if self.json is not None:
            check_output(self.json, "--json")
        from rich.console import Console

        from theory.exact import likelihoods, measured, violations
        from theory.study_files import read_study

        study = read_study(self.study)
        policies, roads, fits = list(measured(study)), violations(study), likelihoods(study)
        if self.json is not None:
            from theory.commands.check import write_atomically

            body = {"policies": policies, "theorem_2_2": roads, "likelihood": fits}
            rows = {name: [asdict(row) for row in found] for name, found in body.items()}
            write_atomically(self.json, {"schema": 1, **rows})
        console = Console()
        _print_policies(console, policies)
        _print_roads(console, roads)
        _print_fits(console, fits)
        wrong = [row for row in policies if not row.agrees]
        for row in wrong:
            print(f"{_name(row)}: the study recorded other numbers (by {row.recorded_gap:.2g})")
        return 1 if wrong else 0


def _name(row: Measured) -> str:
    branch = f".{row.branch}" if row.branch else ""
    size = f"@{row.size}" if row.size else ""
    return f"{row.policy}{branch}{size}" + ("" if row.seed is None else f"[{row.seed}]")


def _print_policies(console: Console, rows: list[Measured]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Policies, exactly")
    names = ("policy", "KL to optimum", "regret", "KL to reference", "win rate", "off the task")
    for name in names:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        reference = "-" if row.kl_to_reference is None else f"{row.kl_to_reference:.4f}"
        table.add_row(
            escape(_name(row)),
            f"{row.kl_to_optimum:.4f}",
            f"{row.soft_regret:.4f}",
            reference,
            f"{row.win_rate:.4f}",
            f"{row.mass_off_task:.1e}",
        )
    console.print(table)
    worst = max((row.lemma_gap for row in rows), default=0.0)
    console.print(f"Lemma 2.1 (regret = beta KL) holds within {worst:.1e} reward units.")


def _print_roads(console: Console, rows: list[Violation]) -> None:
    """One line a kind, branch, size and rule: the largest and mean KL over seeds."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Theorem 2.2 says 0: KL(soft RL of the reward model || the policy), nats")
    numbers = ("runs", "mean", "largest", "backwards", "moved")
    for name in ("reward model", "policy", "what differs", *numbers):
        table.add_column(name, justify="right" if name in numbers else "left")
    groups: dict[tuple[str, ...], list[Violation]] = {}
    for row in rows:
        where = "".join(f" {part}" for part in (row.branch, row.size) if part)
        heads = (row.reward_model.split("[")[0] + where, row.policy.split("[")[0] + where)
        groups.setdefault((*heads, row.kind), []).append(row)
    for (reward, policy, kind), found in groups.items():
        shown = (
            _mean([row.kl for row in found]),
            f"{max(row.kl for row in found):.1e}",
            _mean([row.kl_back for row in found]),
            _mean([row.moved for row in found if row.moved is not None]),
        )
        table.add_row(escape(reward), escape(policy), KINDS[kind], str(len(found)), *shown)
    table.caption = "moved: KL(the policy || the SFT policy)"
    console.print(table if rows else "Theorem 2.2: the study has neither DPO nor a local model.")


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1e}" if values else "-"


def _print_fits(console: Console, rows: list[Likelihood]) -> None:
    for row in rows:
        where = "".join(f" {part}" for part in (row.branch, row.size) if part)
        seed = "" if row.seed is None else f", seed {row.seed}"
        losses = ", ".join(
            f"{name} {loss:.4f} (largest slope {slope:.1e})"
            for name, loss, slope in (
                ("DPO", row.dpo_loss, row.dpo_gradient),
                ("local reward model", row.local_rm_loss, row.local_rm_gradient),
            )
            if loss is not None and slope is not None
        )
        console.print(
            f"Its assumptions{where}{seed}: a finite maximiser over all rewards exists on "
            f"{row.prompts_with_maximiser} of {row.prompts} prompts ({row.pairs} pairs); training "
            f"loss {losses}, least of any reward {row.least_loss:.4f} nats a pair.",
            highlight=False,
        )
