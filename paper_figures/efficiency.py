"""How many times the pairs an offline arm needs: dots with intervals, and a map."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedLocator, FuncFormatter

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
)
from paper_figures.sweep_records import CHOSEN, HINDSIGHT, Cell, Ratio
from paper_figures.sweep_stats import ALL, FIRST, MATCHED, centre, kinds
from paper_figures.sweep_words import (
    family_words,
    short_words,
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
    """The targets that most settings have: those that were not made for a single one."""
    seen: dict[float, set[str]] = {}
    for row in ratios:
        setting = str((row.kind, sorted(row.setting.items())))
        seen.setdefault(row.target_kl, set()).add(setting)
    several = len(set().union(*seen.values())) if seen else 0
    return {target for target, found in seen.items() if several == 1 or 2 * len(found) > several}


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
