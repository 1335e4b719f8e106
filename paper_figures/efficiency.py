"""How many times the pairs an offline arm needs: dots with intervals, and a map."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter

from paper_figures.prose import ABSENT, number
from paper_figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    VERMILION,
    Panel,
    label,
    legend_below,
    mark,
    two_line_title,
)
from paper_figures.sweep_records import CHOSEN, HINDSIGHT, Cell, Ratio
from paper_figures.sweep_stats import ALL, FIRST, MATCHED, centre, kinds
from paper_figures.sweep_words import (
    COMPLEXITIES,
    family_words,
    setting_words,
    short_words,
    value_words,
)

AT_LEAST, AT_MOST, NEITHER = "ratio is at least", "ratio is at most", "neither arm reaches it"
SIGNS = {"none": "", AT_LEAST: "≥ ", AT_MOST: "≤ "}
TARGET_LOOKS = ((BLUE, "o"), (ORANGE, "s"), (VERMILION, "^"), (PURPLE, "D"), (GREEN, "v"))
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
MAP_INK = "#101418"  # on the pale cells of the map, in a light page and in a dark one
MAP = LinearSegmentedColormap.from_list("ratio", ("#8ec4ea", "#f2f2f0", "#f2a66a"))
MAP_NONE = "#c9cdd2"
AXES_OF_MAP = (("complexity", "sharpness"), ("complexity", "horizon"), ("horizon", "sharpness"))


def ratio_words(row: Ratio) -> str:
    """'5.1 [4.2, 6.3]', '≥ 3.2', '≤ 0.5' or 'not reached'."""
    if row.bound == NEITHER or row.ratio is None:
        return "not reached"
    return f"{SIGNS[row.bound]}{row.ratio:.2g} {interval_words(row)}".strip()


def interval_words(row: Ratio) -> str:
    """'[4.2, 6.3]'; an end that runs out of the curves is open: '[4.2, …)'; '' without both."""
    if row.low is None and row.high is None:
        return ""
    low = "(…" if row.low is None else f"[{row.low:.2g}"
    return low + (", …)" if row.high is None else f", {row.high:.2g}]")


def select(
    ratios: Iterable[Ratio], *, choice: str = CHOSEN, offline: str = ALL, online: str = FIRST
) -> list[Ratio]:
    """The ratios of one pair of arms under one choice."""
    wanted = (choice, offline, online)
    return [r for r in ratios if (r.choice, r.offline_arm, r.online_arm) == wanted]


def at_centres(cells: Sequence[Cell], ratios: Iterable[Ratio]) -> list[Ratio]:
    """The ratios of the setting at each family's centre, families in the order of the grid."""
    places = {kind: centre(cells, kind)[0].place for kind in kinds(cells)}
    rows = list(ratios)
    return [
        row
        for kind, place in places.items()
        for row in rows
        if row.kind == kind and _same(row.setting, place)
    ]


def _same(setting: dict[str, Any], place: dict[str, Any]) -> bool:
    """Whether all that both name agrees; a cell's place is the setting of its ratios."""
    return all(setting[key] == place[key] for key in setting.keys() & place.keys())


def best_target(rows: Sequence[Ratio], stated: Collection[float] = ()) -> Ratio | None:
    """Of the targets of one setting the hardest that both arms reach, else that one arm does.

    Targets with both ends of the interval come first, then stated ones, which families share.
    """
    for wanted in (("none",), (AT_LEAST, AT_MOST)):
        found = [row for row in rows if row.bound in wanted and row.ratio is not None]
        if found:
            return min(
                found,
                key=lambda r: (None in (r.low, r.high), r.target_kl not in stated, r.target_kl),
            )
    return None


def stated_targets(ratios: Iterable[Ratio]) -> set[float]:
    """The targets that more than one curve has: those that were not made for a single curve."""
    seen: dict[float, set[tuple]] = {}
    for row in ratios:
        curve = (row.kind, str(sorted(row.setting.items())), row.choice, row.offline_arm)
        seen.setdefault(row.target_kl, set()).add(curve)
    return {target for target, curves in seen.items() if len(curves) > 1}


def family_panel(cells: Sequence[Cell], ratios: Sequence[Ratio], name: str) -> Panel | None:
    """One row a family: the ratio at the hardest target that both roads reach.

    Filled: all policies and matched policies, chosen by held-out pairs. Hollow: in hindsight.
    """
    rows: list[tuple[str, list[tuple[Ratio, str]]]] = []
    here, stated = at_centres(cells, ratios), stated_targets(ratios)
    for kind in kinds(cells):
        mine = [row for row in here if row.kind == kind]
        first = best_target(select(mine), stated)
        if first is None:
            target, found = "", []
        else:
            target = f"\nKL {first.target_kl:.2g} nats"
            found = [(first, "filled")]
            found += [(r, "hollow") for r in _at(first, select(mine, choice=HINDSIGHT))]
            found += [(r, "filled") for r in _at(first, select(mine, offline=MATCHED))]
        rows.append((short_words(kind) + target, found))
    if not any(found for _, found in rows):
        return None

    def draw(ax: Axes) -> None:
        ratio_axis(ax, [r for _, found in rows for r, _ in found])
        for i, (_, found) in enumerate(rows):
            for row, fill in found:
                shift = 0.2 if row.offline_arm == MATCHED else -0.2 if fill == "filled" else 0.0
                dot(ax, i + shift, row, mark(row.offline_arm), hollow=fill == "hollow")
            if not found:
                ax.text(1.06, i, "not reached", va="center", fontsize=6.8, style="italic")
        ax.set_yticks(range(len(rows)), [words for words, _ in rows])
        ax.set_ylim(len(rows) - 0.5, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("pairs offline / pairs two-stage online")
        ax.set_title("Data efficiency")
        for arm in (ALL, MATCHED):
            ax.plot([], [], mark(arm)[1], color=mark(arm)[0], label=label(arm), ls="none")
        legend_below(ax)

    said = "; ".join(
        f"{flat_label(words)}: "
        + (", ".join(f"{label(r.offline_arm)} {ratio_words(r)}" for r, f in found if f == "filled")
           or "not reached")
        for words, found in rows
    )  # fmt: skip
    alt = f"Pairs that offline learning needs over those of two-stage online. {said}"
    return Panel(name, draw, alt, height=1.5 + 0.36 * len(rows))


def flat_label(words: str) -> str:
    """A row's label in one line."""
    return words.replace("\n", ", ")


def _at(first: Ratio, rows: Sequence[Ratio]) -> list[Ratio]:
    """The same target in other rows, where it has a ratio."""
    return [r for r in rows if r.target_kl == first.target_kl and r.ratio is not None]


def targets_panel(cells: Sequence[Cell], ratios: Sequence[Ratio], name: str) -> Panel | None:
    """Every target of every family at its centre, with intervals."""
    here = at_centres(cells, select(ratios))
    if not here:
        return None
    stated = stated_targets(ratios) or {row.target_kl for row in here}
    targets = sorted({row.target_kl for row in here} & stated, reverse=True)
    looks = dict(zip(targets, TARGET_LOOKS, strict=False))
    order = kinds(cells)
    shown = [row for row in here if row.target_kl in looks]
    if not any(row.ratio is not None for row in shown):
        return None

    def draw(ax: Axes) -> None:
        ratio_axis(ax, [row for row in shown if row.ratio is not None])
        offsets = {t: 0.16 * (i - (len(looks) - 1) / 2) for i, t in enumerate(looks)}
        for row in shown:
            y = order.index(row.kind) + offsets[row.target_kl]
            if row.ratio is not None and row.bound != NEITHER:
                dot(ax, y, row, looks[row.target_kl])
        for target, look in looks.items():
            words = f"KL {target:.2g} nats"
            ax.plot([], [], look[1], color=look[0], label=words, ls="none")
        ax.set_yticks(range(len(order)), [short_words(kind) for kind in order])
        ax.set_ylim(len(order) - 0.5, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("pairs offline / pairs two-stage online")
        ax.set_title("Data efficiency at several targets")
        legend_below(ax, 3)

    said = "; ".join(
        f"{family_words(row.kind)}, KL {row.target_kl:.2g}: {ratio_words(row)}" for row in shown
    )
    return Panel(name, draw, f"Ratio of pairs by target. {said}", height=1.6 + 0.34 * len(order))


def ratio_axis(ax: Axes, rows: Sequence[Ratio]) -> None:
    """A log axis around the ratios, with 1 marked."""
    values = [v for r in rows for v in (r.ratio, r.low, r.high) if v is not None and v > 0]
    low, high = min([*values, 0.8]) / 1.25, max([*values, 1.25]) * 1.35
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    shown = [t for t in TICKS if low <= t <= high]
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.minorticks_off()
    ax.axvline(1.0, color=INK, lw=0.9)


def dot(ax: Axes, y: float, row: Ratio, look: tuple[str, str], *, hollow: bool = False) -> None:
    """One ratio with its interval; a bound is an arrow head that points where the ratio lies."""
    if row.ratio is None:
        return
    colour, marker = look
    if row.low is not None or row.high is not None:
        left, right = ax.get_xlim()
        ends = [row.low or left, row.high or right]
        ax.plot(ends, [y, y], color=colour, lw=1.2, alpha=0.5 if hollow else 1.0)
        for end, known, head in zip(ends, (row.low, row.high), "<>", strict=True):
            if known is None:
                ax.plot(end, y, head, color=colour, ms=4, clip_on=False)
    ax.plot(row.ratio, y, marker, color=colour, mfc="none" if hollow else colour, ms=4.6, zorder=4)
    if row.bound in (AT_LEAST, AT_MOST):
        reach = 1.22 if row.bound == AT_LEAST else 1 / 1.22
        arrow = {"arrowstyle": "->", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (row.ratio * reach, y), (row.ratio, y), arrowprops=arrow)


# --- the map --------------------------------------------------------------------------------------


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
        if len({x for x, _ in grid}) > 1 and len({y for _, y in grid}) > 1
    }  # fmt: skip
    if not both:
        return None

    def rank(key: tuple) -> tuple[int, int, float]:
        grid = both[key]
        return len(grid), sum(r.bound == "none" for r in grid.values()), -key[1]

    key = max(both, key=rank)
    return map_panel(kind, across, down, dict(key[0]), key[1], both[key], name)


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
    xs, ys = sorted({x for x, _ in grid}), sorted({y for _, y in grid})

    def draw(ax: Axes) -> None:
        for (x, y), row in grid.items():
            i, j = xs.index(x), ys.index(y)
            ax.add_patch(Rectangle((i - 0.5, j - 0.5), 1, 1, fc=map_colour(row), ec="white", lw=2))
            ax.text(i, j, map_words(row), ha="center", va="center", color=MAP_INK, fontsize=6.8)
        ax.set_xlim(-0.5, len(xs) - 0.5)
        ax.set_ylim(-0.5, len(ys) - 0.5)
        ax.set_xticks(range(len(xs)), [value_words(x) for x in xs])
        ax.set_yticks(range(len(ys)), [value_words(y) for y in ys])
        ax.grid(visible=False)
        ax.set_xlabel(_axis_words(kind, across))
        ax.set_ylabel(_axis_words(kind, down))
        words = ", ".join(filter(None, [family_words(kind), setting_words(held)]))
        title = f"Pairs offline / pairs two-stage online\n{words}; to reach KL {target:.2g} nats"
        two_line_title(ax, title)

    said = "; ".join(
        f"{across} {value_words(x)}, {down} {value_words(y)}: {ratio_words(row)}"
        for (x, y), row in sorted(grid.items())
    )
    alt = (
        f"{family_words(kind)}, pairs offline over two-stage to reach {number(target)} nats. {said}"
    )
    return Panel(f"{name}-{kind}-{across}-{down}", draw, alt, height=1.3 + 0.42 * len(ys))


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
    return f"{SIGNS[row.bound]}{row.ratio:.2g}\n{interval_words(row)}".strip()


def map_colour(row: Ratio) -> Any:
    """Orange: offline needs more pairs; blue: fewer; grey: not reached. Full colour at 8 times."""
    if row.bound == NEITHER or row.ratio is None or row.ratio <= 0:
        return MAP_NONE
    return MAP(0.5 + 0.5 * max(-1.0, min(1.0, math.log(row.ratio) / math.log(8.0))))
