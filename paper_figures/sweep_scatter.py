"""Verifier against generator: how complex each is, and what that does to the gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from paper_figures.prose import number
from paper_figures.style import (
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Panel,
    legend_below,
)
from paper_figures.sweep_panels import plain_log
from paper_figures.sweep_records import Cell
from paper_figures.sweep_stats import ALL, Mean, gap, kinds, settings_of
from paper_figures.sweep_words import family_words, is_usual, short_words

LOOKS = (
    (BLUE, "o"), (VERMILION, "^"), (GREEN, "s"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"),
    (INK, "X"), (GRID, "<"),
)  # fmt: skip
SCALE_NAMES = {
    "walsh": "Walsh coefficients",
    "entries": "automaton entries",
}


@dataclass(frozen=True)
class Spot:
    """One setting: its verifier's and its soft-optimal generator's complexity on one scale."""

    kind: str
    verifier: float
    generator: float
    cell: Cell  # of the setting, at the N that was asked for

    @property
    def ratio(self) -> float:
        """Generator / verifier."""
        return self.generator / self.verifier


def spots(cells: Sequence[Cell], scale: str) -> list[Spot]:
    """Every (setting, N) that has both numbers on the scale."""
    out = []
    for cell in cells:
        verifier = cell.scales[f"verifier_{scale}"]
        generator = cell.scales[f"generator_{scale}"]
        if verifier and generator:
            out.append(Spot(cell.kind, verifier, generator, cell))
    return out


def family_looks(cells: Sequence[Cell]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, by its place in the grid."""
    return {kind: LOOKS[i % len(LOOKS)] for i, kind in enumerate(kinds(cells))}


def complexity_panel(cells: Sequence[Cell], scale: str, name: str) -> Panel | None:
    """Verifier against generator on log axes, the diagonal drawn; None where nothing is counted."""
    found = [spot for rows in settings_of(cells).values() for spot in spots(rows[:1], scale)]
    if not found:
        return None
    looks = family_looks(cells)
    title = f"Verifier and generator: {'Walsh scale' if scale == 'walsh' else 'automaton scale'}"
    unit = SCALE_NAMES[scale]

    def draw(ax: Axes) -> None:
        both = [value for spot in found for value in (spot.verifier, spot.generator)]
        low, high = min(both) / 1.5, max(both) * 1.6
        ax.plot([low, high], [low, high], color=INK, lw=0.9, ls="--")
        for spot in found:
            colour, marker = looks[spot.kind]
            ax.plot(
                spot.verifier, spot.generator, marker, color=colour, ms=5.2, alpha=0.85, mew=0.0
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        for axis in (ax.xaxis, ax.yaxis):
            plain_log(axis, few=high / low < 100)
        ax.set_xlabel(f"verifier ({unit})")
        ax.set_ylabel(f"generator ({unit})")
        ax.set_title(title)
        family_legend(ax, looks, {spot.kind for spot in found})

    said = "; ".join(
        f"{family_words(s.kind)}: {number(s.verifier, 1)} and {number(s.generator, 1)}"
        for s in found
    )
    rows = -(-len({spot.kind for spot in found}) // 2)
    return Panel(name, draw, f"{title}, {unit}, verifier and generator. {said}", 3.3 + 0.17 * rows)


def ratio_panel(cells: Sequence[Cell], scale: str, name: str) -> Panel | None:
    """The gap against generator / verifier at the N that the most settings have.

    One mark a setting of the family; what pairs and classes there are is as usual.
    """
    usual = [cell for cell in cells if is_usual(cell.coordinates)]
    at_n = common_n([spot.cell for spot in spots(usual, scale) if gap(spot.cell, ALL)])
    found: list[tuple[Spot, Mean]] = [
        (spot, mean)
        for spot in spots([cell for cell in usual if cell.n_pairs == at_n], scale)
        if (mean := gap(spot.cell, ALL)) is not None
    ]
    if len({spot.ratio for spot, _ in found}) < 2:
        return None
    looks = family_looks(cells)
    title = "Gap against generator / verifier"
    unit = f"generator / verifier ({SCALE_NAMES[scale]})"

    def draw(ax: Axes) -> None:
        for spot, mean in found:
            colour, marker = looks[spot.kind]
            ax.errorbar(
                spot.ratio, mean.value, yerr=mean.half or 0.0, color=colour, marker=marker,
                elinewidth=0.9, capsize=1.5, ls="none", alpha=0.9,
            )  # fmt: skip
        ax.axhline(0.0, color=INK, lw=0.9)
        ax.set_xscale("log")
        ratios = [spot.ratio for spot, _ in found]
        plain_log(ax.xaxis, few=max(ratios) < 100 * min(ratios))
        ax.set_xlabel(unit)
        ax.set_ylabel("KL gap (nats)")
        ax.set_title(f"{title}, N = {at_n}")
        family_legend(ax, looks, {spot.kind for spot, _ in found})

    said = "; ".join(
        f"{family_words(s.kind)}, ratio {number(s.ratio, 2)}: {number(mean.value, sign=True)}"
        for s, mean in found
    )
    rows = -(-len({spot.kind for spot, _ in found}) // 2)
    return Panel(name, draw, f"{title} at N = {at_n}, nats. {said}", 2.8 + 0.17 * rows)


def common_n(cells: Sequence[Cell]) -> int:
    """The N at which the most families, then the most settings were run; 0 without cells.

    Among equals the middle one.
    """
    ns = sorted({cell.n_pairs for cell in cells})

    def rank(n: int) -> tuple[int, int]:
        here = [cell for cell in cells if cell.n_pairs == n]
        return len({cell.kind for cell in here}), len(here)

    best = [n for n in ns if rank(n) == max(map(rank, ns))]
    return best[len(best) // 2] if best else 0


def family_legend(ax: Axes, looks: dict[str, tuple[str, str]], shown: set[str]) -> None:
    """One entry a family, below the axis."""
    handles = [
        Line2D([], [], color=look[0], marker=look[1], ls="none", label=short_words(kind))
        for kind, look in looks.items()
        if kind in shown
    ]
    legend_below(ax, 2, handles=handles)
