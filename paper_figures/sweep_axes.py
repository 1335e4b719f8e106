"""The axes of a sweep: which cells differ along one axis alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paper_figures.sweep_records import Cell
from paper_figures.sweep_stats import centre

At = float | str
COMPLEXITY_KEYS = {  # the setting that moves a family's own complexity
    "walsh": "degree",
    "automaton": "states",
    "coverage": "salient",
    "sat": "degree",
    "lookup": "bits",
    "rouge": "reference",
}
CLASSES = {"true": 0, "full": 2}  # the order of reward classes
SAME = "uniform"  # pairs that the reference does not decide
COVERAGES = (SAME, "on_policy", "narrow")


@dataclass(frozen=True)
class Axis:
    """What varies along an axis, and what is held beside the coordinates that are not free."""

    name: str
    title: str
    at: Callable[[Cell], At | None]  # where a cell stands; None: not on this axis
    free: Callable[[Cell], tuple[str, ...]]  # coordinates that may vary along it
    held: Callable[[Cell], Any] = lambda _: None
    line: Callable[[Cell], str] = lambda _: ""  # cells of different lines share a panel
    unit: str = ""  # the label of the axis; without it the family's own complexity
    log: bool = False


@dataclass(frozen=True)
class Track:
    """Cells that differ along one axis alone: (N, line) -> place on the axis -> cell."""

    axis: Axis
    rest: dict[str, Any]  # the coordinates that are held
    lines: dict[tuple[int, str], dict[At, Cell]]

    @property
    def cells(self) -> list[Cell]:
        """All cells, by line."""
        return [cell for line in self.lines.values() for cell in line.values()]

    @property
    def ns(self) -> list[int]:
        """The N of its lines, ascending."""
        return sorted({n for n, _ in self.lines})

    @property
    def length(self) -> int:
        """How many places the longest line has."""
        return max(len(line) for line in self.lines.values())

    def places(self) -> list[At]:
        """All places, in order."""
        return in_order({at for line in self.lines.values() for at in line})


def _complexity(cell: Cell) -> float | None:
    key = COMPLEXITY_KEYS.get(cell.family)
    return cell.numbers["complexity"] if key in cell.settings else None


def _setting(name: str) -> Callable[[Cell], At | None]:
    return lambda cell: cell.settings.get(name)


def _coordinate(name: str) -> Callable[[Cell], At | None]:
    return lambda cell: cell.coordinates[name]


AXES = (
    Axis(
        "complexity",
        "Complexity of the verifier",
        _complexity,
        lambda cell: (COMPLEXITY_KEYS.get(cell.family, ""),),
    ),
    Axis(
        "fewer-tokens",
        "Shorter horizon: fewer tokens",
        lambda cell: cell.numbers["horizon"],
        lambda _: ("horizon", "bits"),
        held=lambda cell: ("vocab", cell.numbers["vocab"]),
        unit="horizon H (tokens of one vocabulary)",
    ),
    Axis(
        "larger-tokens",
        "Shorter horizon: larger tokens",
        lambda cell: cell.numbers["horizon"],
        lambda _: ("horizon", "reward_class"),
        held=lambda cell: ("completions", cell.numbers["n_completions"]),
        line=lambda cell: cell.coordinates["reward_class"],
        unit="horizon H (tokens; the same completions)",
    ),
    Axis(
        "sharpness", "Sharpness of the reward", _setting("sharpness"), lambda _: ("sharpness",),
        unit="standard deviation of the reward (reward units)",
    ),
    Axis(
        "coverage", "Coverage of the pairs", _coordinate("coverage"), lambda _: ("coverage",),
        unit="how the pairs were drawn",
    ),
    Axis(
        "noise", "Label noise", _coordinate("noise"), lambda _: ("noise",),
        unit="share of labels flipped",
    ),
    Axis(
        "class-size", "Size of the reward class", lambda cell: float(cell.reward_dim),
        lambda _: ("reward_class",), unit="dimension of the fitted reward class", log=True,
    ),
    Axis(
        "beta", "KL weight", _coordinate("beta"), lambda _: ("beta",),
        unit="beta (reward units a nat)", log=True,
    ),
    Axis(
        "reference", "Strength of the reference",
        lambda c: c.coordinates["reference_share"] if c.coordinates["coverage"] != SAME else None,
        lambda _: ("reference_share",), unit="share of the reward in the reference",
    ),
    Axis(
        "prompts", "Prompts", _setting("prompts"), lambda _: ("prompts",), unit="prompts", log=True,
    ),
)  # fmt: skip


def tracks(cells: Sequence[Cell], axis: Axis) -> list[Track]:
    """Every group of cells that differ along the axis alone, those at a family's centre first."""
    groups: dict[tuple, dict[tuple[int, str], dict[At, Cell]]] = {}
    rests: dict[tuple, dict[str, Any]] = {}
    for cell in cells:
        at = axis.at(cell)
        if at is None:
            continue
        free = axis.free(cell)
        rest = {key: value for key, value in cell.place.items() if key not in free}
        group = (*sorted(rest.items()), axis.held(cell))
        rests[group] = rest
        line = groups.setdefault(group, {}).setdefault((cell.n_pairs, axis.line(cell)), {})
        line[at] = cell
    found = []
    for group, lines in groups.items():
        order = sorted(lines, key=lambda key: (key[0], CLASSES.get(key[1], 1), key[1]))
        long = {key: lines[key] for key in order if len(lines[key]) > 1}
        if long:
            found.append(Track(axis, rests[group], long))
    centres = {kind: centre(cells, kind)[0].setting for kind in {c.kind for c in cells}}

    def central(track: Track) -> bool:
        return any(cell.setting == centres[cell.kind] for cell in track.cells)

    return sorted(found, key=lambda track: (not central(track), -track.length))


def in_order(places: Iterable[At]) -> list[At]:
    """Numbers ascending; kinds of coverage from wide to narrow; other names by the alphabet."""

    def key(at: At) -> tuple[float, str]:
        if isinstance(at, str):
            return (COVERAGES.index(at) if at in COVERAGES else len(COVERAGES), at)
        return (float(at), "")

    return sorted(places, key=key)
