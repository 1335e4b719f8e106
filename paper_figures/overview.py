"""One picture of the whole sweep: when two-stage needs less data, by how much, and when not."""

from __future__ import annotations

from collections.abc import Sequence

from paper_figures.efficiency import family_panel
from paper_figures.style import BLUE, GREEN, ORANGE, SKY, VERMILION, Panel, Picture, label, mark
from paper_figures.sweep_axes import AXES, Track, tracks
from paper_figures.sweep_panels import (
    CLASS_NAMES,
    Line,
    complexity_words,
    gap_line,
    level_panel,
    lines_panel,
    middle_n,
)
from paper_figures.sweep_records import Cell, SweepRecord
from paper_figures.sweep_stats import ALL, FIRST, MATCHED, PROPER, centre, kinds
from paper_figures.sweep_words import family_words, setting_words, value_words

NAME = "sweep"
SHOWN = (FIRST, ALL, PROPER, MATCHED)
BY_NAME = {axis.name: axis for axis in AXES}
FEWER_LOOK, LARGER_LOOKS = (GREEN, "o"), {"true": (VERMILION, "^"), "full": (BLUE, "s")}
OTHER_LOOKS = ((ORANGE, "v"), (SKY, "P"))
CAPTION = (
    "KL(policy || optimum) in nats and pairs needed, exact by enumeration; two-stage is a reward "
    "model and then exact soft RL. Points: means over replicates, each arm's candidate chosen by "
    "held-out pairs; bars: 95% t intervals over replicates, for ratios 95% bootstrap intervals. "
    "Hollow: the best candidate in hindsight. The gap is paired by replicate: the offline arm less "
    "{0}. An arrow: one arm reaches the KL only beyond the N that were run; the ratio is a bound."
)


def first_kind(cells: Sequence[Cell]) -> str:
    """The family that the sweep asks the most about: the one with the most settings."""
    order = kinds(cells)
    return max(order, key=lambda kind: len({c.setting for c in cells if c.kind == kind}))


def overview(sweep: SweepRecord) -> Picture | None:
    """At most four panels; None where not one can be filled."""
    kind = first_kind(sweep.cells)
    mine = [cell for cell in sweep.cells if cell.kind == kind]
    found = (
        _levels(mine, kind),
        _complexity(mine),
        _horizon(mine),
        family_panel(sweep.cells, sweep.ratios or (), "sweep-overview-ratios"),
    )
    panels = tuple(panel for panel in found if panel is not None)
    if not panels:
        return None
    title = "When two-stage needs less data, by how much, and when not"
    return Picture(NAME, title, panels, CAPTION.format(label(FIRST)))


def _levels(cells: Sequence[Cell], kind: str) -> Panel | None:
    rows = centre(cells, kind)
    some = {arm for cell in rows for arm in cell.arms}
    if not some & set(SHOWN):
        return None
    place = setting_words(rows[0].place, central_words(rows[0]))
    title = f"KL against pairs\n{family_words(kind)}, {place}"
    return level_panel(rows, SHOWN, title=title, name="sweep-overview-kl")


def central_words(cell: Cell) -> tuple[str, ...]:
    """The coordinates that a title names: the complexity, the sharpness and the horizon."""
    return (cell.complexity_name, "sharpness", "horizon")


def _complexity(cells: Sequence[Cell]) -> Panel | None:
    track = next(iter(tracks(cells, BY_NAME["complexity"])), None)
    if track is None:
        return None
    n = middle_n(track)
    lines = [
        gap_line(track.lines[n, ""], arm, label(arm), mark(arm)) for arm in (ALL, PROPER, MATCHED)
    ]
    shown = [line for line in lines if line is not None]
    if not shown:
        return None
    words = family_words(track.cells[0].kind)
    title = f"Gap against complexity\n{words}, {setting_words(track.rest)}, N = {n}"
    unit = complexity_words(track.cells[0])
    return lines_panel("sweep-overview-complexity", title, unit, shown)


def _horizon(cells: Sequence[Cell]) -> Panel | None:
    """Both readings of a shorter horizon: fewer tokens, and the same bits in larger tokens."""
    fewer = next(iter(tracks(cells, BY_NAME["fewer-tokens"])), None)
    larger = next(iter(tracks(cells, BY_NAME["larger-tokens"])), None)
    ns = [set(track.ns) for track in (fewer, larger) if track is not None]
    shared = sorted(set.intersection(*ns)) if ns else []
    if not shared:
        return None
    n = _middle([track for track in (fewer, larger) if track is not None], shared)
    lines: list[Line | None] = []
    if fewer is not None:
        lines.append(gap_line(fewer.lines[n, ""], ALL, "fewer tokens", FEWER_LOOK))
    if larger is not None:
        rest = iter(OTHER_LOOKS)
        for (at_n, name), at in larger.lines.items():
            if at_n == n:
                look = LARGER_LOOKS.get(name) or next(rest, OTHER_LOOKS[-1])
                words = CLASS_NAMES.get(name, value_words(name))
                lines.append(gap_line(at, ALL, f"larger tokens, {words}", look))
    shown = [line for line in lines if line is not None]
    if not shown:
        return None
    some = next(track.cells[0] for track in (fewer, larger) if track is not None)
    place = setting_words(some.place, (some.complexity_name, "sharpness"))
    title = f"Gap against horizon\n{family_words(some.kind)}, {place}, N = {n}, {label(ALL)}"
    return lines_panel("sweep-overview-horizon", title, "horizon H (tokens)", shown)


def _middle(found: Sequence[Track], shared: Sequence[int]) -> int:
    """The N that both readings have and that has the most places."""

    def size(n: int) -> int:
        return sum(len(line) for track in found for (m, _), line in track.lines.items() if m == n)

    best = [n for n in shared if size(n) == max(map(size, shared))]
    return best[len(best) // 2]
