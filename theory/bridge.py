"""The same claims at two rungs: forecasts by the toy, measurements on small transformers, exactly.

A cell is one task and one number of preference pairs. Its predictions are written before anything
is trained; then `python -m llm study` trains and measures, in a process of its own, and every
number that the cell reports is computed here from the models' own probabilities.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from theory.errors import InputError
from theory.rouge_task import RougeTask, make_rouge_task
from theory.tasks import WalshTask, load_task, make_task, save_task

LLM = (sys.executable, "-m", "llm")
EVERYWHERE = ("fig3", "fig9", "fig10")
ALL = tuple(f"fig{n}" for n in range(3, 11))
SHORT = 2  # tokens, as the short task of Fig. 5
PRESETS = {256: "tiny-256", 1024: "tiny", 4096: "tiny-4096"}  # pairs -> preset of llm


@dataclass(frozen=True)
class Cell:
    """One task, one number of pairs, and the figures that are measured there."""

    task: WalshTask
    pairs: int
    preset: str
    figures: tuple[str, ...] = EVERYWHERE

    @property
    def family(self) -> str:
        """walsh, or lookup: a table of rewards, in which verifying is as hard as generating."""
        full = self.task.prompt_bits + self.task.completion_bits
        return "lookup" if self.task.degree == full else "walsh"

    @property
    def horizon(self) -> int:
        """H, tokens of a completion."""
        return self.task.completion_bits

    @property
    def name(self) -> str:
        """ "walsh-h6-n1024"."""
        return f"{self.family}-h{self.horizon}-n{self.pairs}"


def cells() -> tuple[Cell, ...]:
    """The default setting with every figure, then two families x two horizons x few, many pairs."""
    default = WalshTask()
    found = [Cell(default, 1024, PRESETS[1024], ALL)]
    for bits in (SHORT, default.completion_bits):
        for degree in (default.degree, default.prompt_bits + bits):
            task = WalshTask(completion_bits=bits, degree=degree)
            found += [Cell(task, pairs, PRESETS[pairs]) for pairs in (256, 4096)]
    return tuple(found)


def choose(names: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of these names, all for none. Raises InputError naming an unknown one."""
    every = {cell.name: cell for cell in cells()}
    for name in names:
        if name not in every:
            raise InputError(f"no cell {name!r}; known: {', '.join(every)}")
    return tuple(every[name] for name in names) or tuple(every.values())


@dataclass(frozen=True)
class Bridge:
    """Where and how the cells run. command: what starts `python -m llm`."""

    out: Path
    seeds: int = 3
    replicates: int = 64
    jobs: int | None = None  # stages at a time; None: as many as llm thinks right
    command: tuple[str, ...] = LLM

    def folder(self, cell: Cell) -> Path:
        """The cell's own folder."""
        return self.out / cell.name

    def study(self, cell: Cell) -> Path:
        """The folder of its study."""
        return self.folder(cell) / "study"


def predict(bridge: Bridge, cell: Cell, report: Callable[[str, int], object]) -> bool:
    """Write the cell's tasks and predictions; False if they were there already."""
    from theory.forecast import forecast, header
    from theory.predictions import save
    from theory.toy import ToyConfig

    folder = bridge.folder(cell)
    save_task(folder / "task.json", make_task(cell.task))
    if len(cell.figures) > len(EVERYWHERE):
        save_task(folder / "short_task.json", make_task(WalshTask(completion_bits=SHORT)))
        save_task(folder / "rouge_task.json", make_rouge_task(RougeTask()))
    task = load_task(folder / "task.json")
    config = ToyConfig(n_pairs=cell.pairs, replicates=bridge.replicates)
    head = {**header(task, config), "figures": list(cell.figures)}
    path = folder / "predictions.json"
    if _predicted(path, head):
        return False
    rows = forecast(task, cell.figures, config, report)
    save(path, "predictions", [row.prediction for row in rows], **head)
    return True


def _predicted(path: Path, head: dict[str, Any]) -> bool:
    """Whether the predictions of this task, these settings and figures stand there."""
    from theory.study_files import read_json

    if not path.exists():
        return False
    found = read_json(path)
    return isinstance(found, dict) and {name: found.get(name) for name in head} == head


def train(bridge: Bridge, cell: Cell) -> int:
    """Run or resume the cell's study; its exit code. Its tables go to study.log."""
    folder = bridge.folder(cell)
    arguments = [
        *("study", *cell.figures, "--preset", cell.preset, "--seeds", str(bridge.seeds)),
        *("--data", str(folder / "task.json"), "--out", str(bridge.study(cell))),
        *("--predictions", str(folder / "predictions.json")),
    ]
    for name in ("short_task", "rouge_task"):
        if (folder / f"{name}.json").exists():
            arguments += [f"--{name.replace('_', '-')}", str(folder / f"{name}.json")]
    if bridge.jobs is not None:
        arguments += ["--jobs", str(bridge.jobs)]
    with (folder / "study.log").open("w", encoding="utf-8") as log:
        return subprocess.run([*bridge.command, *arguments], stdout=log, check=False).returncode
