"""The map of data efficiency: how many times the pairs, over two axes or setting by setting."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from paper_figures.efficiency import (
    NEITHER,
    SIGNS,
    interval_words,
    ratio_words,
    select,
    stated_targets,
)
from paper_figures.prose import ABSENT
from paper_figures.style import Panel, two_line_title
from paper_figures.sweep_records import Cell, Ratio
from paper_figures.sweep_stats import centre, kinds
from paper_figures.sweep_words import COMPLEXITIES, apart, family_words, setting_words, value_words

LABEL_WIDTH = 24  # characters of a line of a row's label
MAP_INK = "#101418"  # on the pale cells of the map, in a light page and in a dark one
MAP = LinearSegmentedColormap.from_list("ratio", ("#8ec4ea", "#f2f2f0", "#f2a66a"))
MAP_NONE = "#c9cdd2"
AXES_OF_MAP = (("complexity", "sharpness"), ("complexity", "horizon"), ("horizon", "sharpness"))
LEAST_FILLED = 0.8  # of the cells of a map over two axes; with fewer the settings are rows
FULL_COLOUR = 8.0  # the ratio, and its inverse, at which the colour is full


def map_panels(cells: Sequence[Cell], ratios: Sequence[Ratio], name: str) -> list[Panel]:
    """Maps over two axes of one family, where a family varies both."""
    out = []
    for kind in kinds(cells):
        mine = [r for r in select(ratios) if r.kind == kind and r.complexity is not None]
        for across, down in AXES_OF_MAP:
            panel = _best_map(mine, kind, across, down, name)
            if panel is not None:
                out.append(panel)
    return out


def _best_map(rows: Sequence[Ratio], kind: str, across: str, down: str, name: str) -> Panel | None:
    """The largest map over the two axes with everything else held, at the target that fills it."""
    groups: dict[tuple, dict[tuple, Ratio]] = {}
    for row in rows:
        held = _held(row, (across, down))
        at = (getattr(row, across), getattr(row, down))
        groups.setdefault((held, row.target_kl), {})[at] = row
    both = {
        key: grid for key, grid in groups.items()
        if _filled(grid) >= LEAST_FILLED
    }  # fmt: skip
    if not both:
        return None

    def rank(key: tuple) -> tuple[int, int, float]:
        grid = both[key]
        return len(grid), sum(r.bound == "none" for r in grid.values()), -key[1]

    key = max(both, key=rank)
    return map_panel(kind, across, down, dict(key[0]), key[1], both[key], name)


def _filled(grid: dict[tuple, Ratio]) -> float:
    """The share of cells that were run; 0 unless both axes vary."""
    wide, high = len({x for x, _ in grid}), len({y for _, y in grid})
    return len(grid) / (wide * high) if min(wide, high) > 1 else 0.0


def _held(row: Ratio, free: tuple[str, str]) -> tuple:
    """What is not on the two axes. The setting that is the complexity goes with it."""
    gone = {"family", *free}
    if "complexity" in free:
        gone |= {k for k in ("degree", "states", "salient", "reference") if k in row.setting}
    return tuple(sorted((k, v) for k, v in row.setting.items() if k not in gone))


def map_panel(
    kind: str, across: str, down: str, held: dict, target: float,
    grid: dict[tuple, Ratio], name: str,
) -> Panel:  # fmt: skip
    """One cell a setting: the ratio as a number, a colour for its size; grey: not reached."""
    xs, ys = sorted({x for x, _ in grid}), sorted({y for _, y in grid}, reverse=True)
    words = ", ".join(filter(None, [family_words(kind), setting_words(held)]))
    title = f"Pairs offline / pairs two-stage online\n{words}; to reach KL {target:.2g} nats"

    def draw(ax: Axes) -> None:
        tiles(ax, {(xs.index(x), ys.index(y)): row for (x, y), row in grid.items()})
        ax.set_xticks(range(len(xs)), [value_words(x) for x in xs])
        ax.set_yticks(range(len(ys)), [value_words(y) for y in ys])
        ax.set_xlabel(_axis_words(kind, across))
        ax.set_ylabel(_axis_words(kind, down))
        two_line_title(ax, title)

    said = "; ".join(
        f"{across} {value_words(x)}, {down} {value_words(y)}: {ratio_words(row)}"
        for (x, y), row in sorted(grid.items())
    )
    alt = f"{title.replace(chr(10), ', ')}. {said}"
    return Panel(f"{name}-{kind}-{across}-{down}", draw, alt, height=1.3 + 0.42 * len(ys))


def settings_panel(
    cells: Sequence[Cell], ratios: Sequence[Ratio], kind: str, name: str
) -> Panel | None:
    """One row a setting of a family, one column a stated target; None below two settings.

    The first row is the family's centre; the others are named by what sets them apart from it.
    """
    stated = stated_targets(ratios)
    mine = [r for r in select(ratios) if r.kind == kind and r.target_kl in stated]
    targets = sorted({r.target_kl for r in mine}, reverse=True)
    here = centre(cells, kind)[0].place
    grid: dict[tuple[str, float], Ratio] = {}
    for row in sorted(mine, key=lambda r: apart(r.setting, here) != ""):
        grid[apart(row.setting, here) or f"{_centre_words(here)}", row.target_kl] = row
    names = list(dict.fromkeys(words for words, _ in grid))
    if len(names) < 2:
        return None
    title = f"Times the pairs, by setting\n{family_words(kind)}: offline / two-stage"

    def draw(ax: Axes) -> None:
        at = {(targets.index(t), names.index(words)): row for (words, t), row in grid.items()}
        tiles(ax, at)
        ax.set_xticks(range(len(targets)), [f"{t:.2g}" for t in targets])
        labels = [textwrap.fill(words, LABEL_WIDTH) for words in names]
        ax.set_yticks(range(len(names)), labels, fontsize=6.4)
        ax.set_xlabel("KL to reach (nats)")
        two_line_title(ax, title)

    said = "; ".join(f"{words}, KL {t:.2g}: {ratio_words(row)}" for (words, t), row in grid.items())
    alt = f"{title.replace(chr(10), ', ')}. {said}"
    return Panel(f"{name}-{kind}-settings", draw, alt, height=1.1 + 0.29 * len(names))


def _centre_words(here: dict[str, Any]) -> str:
    return setting_words(here, ("degree", "states", "salient", "reference", "sharpness", "horizon"))


def tiles(ax: Axes, grid: dict[tuple[int, int], Ratio]) -> None:
    """Coloured tiles with their ratios; the first row on top."""
    for (i, j), row in grid.items():
        ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, fc=map_colour(row), ec="white", lw=2))
        ax.text(i, j, map_words(row), ha="center", va="center", color=MAP_INK, fontsize=6.2)
    ax.set_xlim(-0.5, max(i for i, _ in grid) + 0.5)
    ax.set_ylim(max(j for _, j in grid) + 0.5, -0.5)
    ax.grid(visible=False)


def _axis_words(kind: str, name: str) -> str:
    family = kind.split(" ")[0]
    return {
        "complexity": COMPLEXITIES.get(family, "complexity"),
        "sharpness": "sharpness",
        "horizon": "horizon H (tokens)",
    }[name]


def map_words(row: Ratio) -> str:
    """What stands in a cell of the map."""
    if row.bound == NEITHER or row.ratio is None:
        return ABSENT
    return f"{SIGNS[row.bound]}{row.ratio:.2g} {interval_words(row)}".strip()


def map_colour(row: Ratio) -> Any:
    """Orange: offline needs more pairs; blue: fewer; grey: not reached. Full at FULL_COLOUR."""
    if row.bound == NEITHER or row.ratio is None or row.ratio <= 0:
        return MAP_NONE
    return MAP(0.5 + 0.5 * max(-1.0, min(1.0, math.log(row.ratio) / math.log(FULL_COLOUR))))
