"""`python -m theory solve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from theory.commands.check import write_atomically
from theory.outputs import check_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from rich.console import Console

    from theory.preferences import Witness
    from theory.solution import Preferences, Roads, SoftOptimum, Solution

ROWS = 20  # of a printed table; --json has them all
MANY = 200  # prompts, from which a fit shows its progress: about a second


@dataclass(frozen=True)
class Solve:
    """Solve your own instance exactly: its reward, its preferences, and both roads.

    Reads one JSON file (docs/instances has three): tokens, horizon, eos, prompts, forbidden, and
    optionally a reward, a reference and preferences. Prints log Z, soft values, policies and
    log-probabilities; whether the preferences have a finite maximiser (the witness if not), their
    components, and the policies of both roads with the KL between them. Writes --json if asked.
    Exit code 0 when solved (an empty set of maximisers is a result), 1 where float64 did not reach
    a maximiser that exists (all else is still printed and written), 2 for bad input.

    Example: python -m theory solve docs/instances/unique.json --beta 0.5 --json out/solution.json
    """

    instance: Annotated[Path, tyro.conf.Positional]
    """The instance file."""
    beta: float = 1.0
    """KL weight, reward units a nat."""
    json: Path | None = None
    """Write everything here; the folder is made if it is missing."""

    def run(self) -> int:
        """0 when solved, 1 where a maximiser was not reached. Raises InputError."""
        if self.json is not None:
            check_output(self.json, "--json")
        from rich.console import Console

        from theory.fit import ConvergenceError
        from theory.instance import load_instance
        from theory.solution import solve

        instance = load_instance(self.instance)
        try:
            solution = solve(instance, self.beta, track=_progress)
        except ConvergenceError as error:
            return _not_solved(str(error))
        if self.json is not None:
            write_atomically(self.json, solution.to_json())
        _Page(Console(), solution).print()
        found = solution.preferences
        return _not_solved(str(found.left_out)) if found is not None and found.failed else 0


def _not_solved(reason: str) -> int:
    from rich.console import Console

    Console(stderr=True).print(f"not solved: {reason}", markup=False, highlight=False)
    return 1


def _progress(parts: list[np.ndarray]) -> Iterable[np.ndarray]:
    """The prompts of the policy fit under a bar on stderr, if there are many."""
    from rich.console import Console
    from rich.progress import track

    if len(parts) < MANY:
        return parts
    return track(parts, "fitting policies", console=Console(stderr=True), transient=True)


class _Page:
    """Prints a solution as tables."""

    def __init__(self, console: Console, solution: Solution) -> None:
        from theory.instance import leaf_names, state_names

        self.console, self.solution = console, solution
        self.tree = solution.instance.tree
        self.names = [self._plain(name) for name in leaf_names(self.tree)]
        self.states = state_names(self.tree)

    def print(self) -> None:
        """The reward's optimum prompt by prompt, then the preferences."""
        optimum, preferences = self.solution.optimum, self.solution.preferences
        prompts = list(enumerate(self.tree.prompts))
        if optimum is not None:
            for x, prompt in prompts[:ROWS]:
                self.optimum(optimum, x, self._plain(prompt))
            self._cut(len(prompts), "prompts")
        if preferences is not None:
            self.preferences(preferences)
        if optimum is None and preferences is None:
            self._say("nothing to solve: the instance has neither a reward nor preferences")

    def optimum(self, optimum: SoftOptimum, x: int, prompt: str) -> None:
        """One prompt under the reward of the instance."""
        kind = "P*_r" if self.solution.instance.log_ref is None else "P*_r . P_ref"
        self._say(f"\nprompt {prompt}: log Z = {optimum.log_z[x]:.6g} nats, {kind} of the reward")
        rows = (
            (
                self._plain(name) or "(start)",
                f"{optimum.values[h][x, state]:.6g}",
                self._choices(optimum.log_policy[h][x, state]),
            )
            for name, h, state in self.states[:ROWS]
        )
        self._table(("prefix", "soft value", "policy"), rows, len(self.states), "prefixes")
        reward = self.solution.instance.reward
        if reward is not None:
            self._completions(x, (("reward", reward), ("log P", optimum.log_p)))

    def preferences(self, found: Preferences) -> None:
        """Existence, components, dimension, and the roads."""
        optima, data = found.optima, self.solution.instance.data
        if data is not None:
            self._say(f"\npreferences: {data.total:g} comparisons in {data.size:,} distinct rows")
        witnesses = optima.graph.witnesses
        if witnesses:
            self._say("no finite maximiser: the set of Bradley-Terry optima is EMPTY, on each road")
            for witness in witnesses[:ROWS]:
                self.witness(witness)
            self._cut(len(witnesses), "witnesses")
        else:
            self._say(
                "a finite maximiser exists; the optimal policies form a set of dimension "
                f"{optima.dimension}, at log-likelihood {optima.log_likelihood:.6g} nats"
            )
        roads = found.roads
        groups = optima.graph.members
        rows = (
            (
                self._plain(self.tree.prompts[prompt]),
                " | ".join(self.names[leaf] for leaf in leaves[:ROWS])
                + (f" ... ({len(leaves):,})" if len(leaves) > ROWS else ""),
                "" if roads is None else f"{roads.masses[label]:.6g}",
            )
            for label, (prompt, leaves) in enumerate(groups[:ROWS])
        )
        self._table(("prompt", "component", "mass"), rows, len(groups), "components")
        if roads is not None and optima.r is not None:
            self.roads(roads)
        elif not optima.empty:
            self._say(f"the roads are left out: {found.left_out}")

    def witness(self, witness: Witness) -> None:
        """Completions of one prompt that have no largest reward."""
        best = " | ".join(self.names[leaf] for leaf in witness.leaves[:ROWS])
        more = len(witness.leaves) - ROWS
        best += f" ... ({len(witness.leaves):,})" if more > 0 else ""
        prompt = self._plain(self.tree.prompts[witness.prompt])
        alone = len(witness.leaves) == 1
        how = (
            "beats others and never loses"
            if alone
            else "beat others as a group and never lose to the rest"
        )
        self._say(f"witness, prompt {prompt}: [{best}] {how}")

    def roads(self, roads: Roads) -> None:
        """Both policies, completion by completion."""
        reference = "uniform" if self.solution.instance.log_ref is None else "the reference"
        name = roads.offline_name
        prompts = list(enumerate(self.tree.prompts))
        for x, prompt in prompts[:ROWS]:
            self._say(f"\nprompt {self._plain(prompt)}: both roads (masses nearest to {reference})")
            columns = (
                ("fitted reward", roads.reward),
                ("log P rlhf", roads.online.log_p),
                (f"log P {name}", roads.offline),
            )
            self._completions(x, columns)
        self._cut(len(prompts), "prompts")
        self._say(f"KL(rlhf || {name}) = {roads.kl:.3g} nats")

    # --- helpers ---------------------------------------------------------------------------------

    def _completions(self, x: int, columns: tuple[tuple[str, np.ndarray], ...]) -> None:
        leaves = self.tree.leaves
        rows = (
            (self.names[leaf], *(f"{table[x, leaf]:.6g}" for _, table in columns))
            for leaf in leaves[:ROWS]
        )
        self._table(("completion", *(name for name, _ in columns)), rows, len(leaves), "rows")

    def _choices(self, row: np.ndarray) -> str:
        import numpy as np

        allowed = np.flatnonzero(row > -np.inf)
        shown = [f"{self._plain(self.tree.tokens[a])} {np.exp(row[a]):.4f}" for a in allowed[:8]]
        return "  ".join(shown) + (f"  ... ({len(allowed):,})" if len(allowed) > 8 else "")

    def _table(
        self, header: tuple[str, ...], rows: Iterable[tuple[str, ...]], total: int, kind: str
    ) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE, pad_edge=False)
        for name in header:
            table.add_column(Text(name))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)
        self._cut(total, kind)

    def _cut(self, total: int, kind: str) -> None:
        if total > ROWS:
            self._say(f"... the first {ROWS} of {total:,} {kind}; --json has them all")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _plain(self, text: str) -> str:
        """A name as this terminal prints it: control characters escaped, long names cut."""
        shown = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
        shown = shown.encode(self.console.encoding, "backslashreplace").decode(
            self.console.encoding
        )
        return shown if len(shown) <= 200 else shown[:197] + "..."
