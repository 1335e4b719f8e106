"""`python -m theory diagnose`: what Bradley-Terry can learn from a set of real comparisons."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from theory.outputs import check_apart, check_output

if TYPE_CHECKING:
    from rich.table import Table

    from theory.comparisons import Comparisons
    from theory.diagnose import Diagnosis


@dataclass(frozen=True)
class Diagnose:
    """Diagnose preference data: which rewards it identifies, and how noisy its labels are.

    Reads OpenAI's raw comparison files (info, summaries, choice) or a table with the columns prompt
    (or subreddit, title, post), chosen, rejected and perhaps annotator (or worker) and count: JSON
    lines, a JSON list, CSV (each plain or .gz) or parquet; one file, or all files of a folder.
    Prompts and completions are told apart by their exact texts. Prints a table and what it means;
    writes --json if asked. Exit code 0; 2 for bad input.

    Example: python -m theory diagnose comparisons/batch13.json --json diagnosis.json
    """

    path: Annotated[Path, tyro.conf.Positional]
    """A file or a folder."""
    json: Path | None = None
    """Write the numbers and the sentences here; the folder is made if it is missing.

    In it `pairs`, `separable_pairs` and `pairs_without_annotator` count comparisons (labels); the
    other names with `pairs` count distinct pairs {a, b}."""

    def run(self) -> int:
        """0 when the diagnosis is printed and written. Raises InputError."""
        from theory.diagnose import diagnose
        from theory.diagnosis_text import meaning

        if self.json is not None:
            check_apart(self.json, self.path, "--json")
            check_output(self.json, "--json")
        data = _read(self.path)
        diagnosis = diagnose(data)
        sentences = meaning(diagnosis)
        if self.json is not None:
            from theory.commands.check import write_atomically

            write_atomically(self.json, _body(self.path, data, diagnosis, sentences))
        _print(_table(diagnosis), sentences)
        return 0


def _read(path: Path) -> Comparisons:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    from theory.comparisons import read_comparisons

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("diagnose: read", total=1.0)
        return read_comparisons(path, on_progress=lambda part: progress.update(bar, completed=part))


def _body(
    path: Path, data: Comparisons, diagnosis: Diagnosis, sentences: list[str]
) -> dict[str, object]:
    where = {"path": str(path), "files": data.files, "files_skipped": data.files_skipped}
    return {**where, **asdict(diagnosis), "meaning": sentences}


def _print(table: Table, sentences: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(table)
    console.print("What this means for Bradley-Terry on this data", style="bold")
    points = Table.grid(padding=(0, 1))
    for sentence in sentences:
        points.add_row("-", Text(sentence))
    console.print(points)


def _table(d: Diagnosis) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="Preference data", box=box.SIMPLE, pad_edge=False, show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right", no_wrap=True)
    for part in (_counts(d), _graph(d), _labels(d)):
        for what, value in part:
            table.add_row(what, f"{value:,}" if isinstance(value, int) else value)
        table.add_section()
    return table


def _counts(d: Diagnosis) -> list[tuple[str, int | str]]:
    dropped = sum(d.dropped.values())
    return [
        ("comparisons (pairs)", d.pairs),
        ("prompts", d.prompts),
        ("completions", d.completions),
        ("annotators", "unknown" if d.annotators is None else d.annotators),
        *([("rows dropped", dropped)] if dropped else []),
    ]


def _graph(d: Diagnosis) -> list[tuple[str, int | str]]:
    return [
        ("prompts with a finite maximum-likelihood reward", d.prompts_with_finite_mle),
        ("components", d.components),
        ("completions in the largest component", d.largest_component),
        ("prompts in one component", d.prompts_in_one_component),
        ("free component masses", d.free_component_masses),
        (
            "  on prompts with a finite maximiser (dimension)",
            "none such" if d.dimension is None else d.dimension,
        ),
        ("comparisons that can all be fitted perfectly", d.separable_pairs),
        ("triples with strict majorities", d.triples),
        ("  intransitive", d.intransitive_triples),
        ("majority cycles", d.majority_cycles),
        ("least training log-loss of any reward, nats", _nats(d.least_log_loss)),
    ]


def _nats(loss: float | None) -> str:
    return "not found" if loss is None else f"{loss:.4f}"


def _labels(d: Diagnosis) -> list[tuple[str, int | str]]:
    rows: list[tuple[str, int | str]] = [
        ("distinct pairs", d.distinct_pairs),
        ("  repeated (compared at least twice)", d.repeated_pairs),
        ("    unanimous", d.unanimous_pairs),
        ("    two-way", d.two_way_pairs),
        ("    tied", d.tied_pairs),
    ]
    noise = d.label_noise
    if noise is None:
        return [*rows, ("chance that two annotators agree", "unknown")]
    low, high = noise.interval
    return [
        *rows,
        ("chance that two annotators agree", f"{noise.agreement:.3f}"),
        ("  95% interval (Wilson)", f"{low:.3f} to {high:.3f}"),
        ("least log-loss on repeated pairs, nats", _nats(noise.least_log_loss)),
        ("least expected log-loss on new labels of them, nats", f"{noise.fresh_log_loss:.3f}"),
    ]
