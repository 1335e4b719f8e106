"""Panels of the sweep: a measure against N, and the gap along an axis."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from paper_figures.prose import number
from paper_figures.style import (
    BLUE,
    INK,
    MARKS,
    ORANGE,
    SKY,
    VERMILION,
    Panel,
    label,
    legend_below,
    mark,
    two_line_title,
)
from paper_figures.sweep_axes import At, Track, in_order
from paper_figures.sweep_records import CHOICES, CHOSEN, HINDSIGHT, Cell
from paper_figures.sweep_stats import (
    ALL,
    FIRST,
    MATCHED,
    PROPER,
    Mean,
    gap,
    level,
    mean_of,
    spread_out,
)
from paper_figures.sweep_words import COMPLEXITIES, family_words, setting_words, value_words

MAIN = (FIRST, "two_stage_full", ALL, "offline_all_one_hot", PROPER, MATCHED)
ONLINE = (
    FIRST, ALL, "online_dpo_sft", "online_dpo_dpo", "online_population_sft",
    "online_population_dpo",
)  # fmt: skip
NETWORKS = (
    FIRST, "mlp_two_stage", "mlp_offline", "mlp_dpo", "transformer_two_stage",
    "transformer_offline", "transformer_dpo",
)  # fmt: skip
NAME_WIDTH, NARROW = 20, 46  # characters: of an arm beside its axis; of the title above it
UNITS = {  # measure: axis, whether it is drawn on a log scale
    "kl": ("KL to the optimum (nats)", True),
    "regret": ("regret (reward units)", True),
    "win_rate": ("win rate against the reference (0-1)", False),
    "val_loss": ("validation loss (nats a pair)", False),
    "val_accuracy": ("pair accuracy (0-1)", False),
}
N_LOOKS = ((SKY, "o"), (BLUE, "s"), (INK, "D"), (ORANGE, "v"))
CLASS_LOOKS = {"true": (VERMILION, "^"), "full": (BLUE, "s")}
CLASS_NAMES = {"true": "verifier sees bits", "full": "verifier sees tokens as ids"}


@dataclass(frozen=True)
class Line:
    """One line: where it stands on the axis, its means, and those of the other choice."""

    name: str
    look: tuple[str, str]
    at: tuple[At, ...]
    means: tuple[Mean, ...]
    hindsight: tuple[Mean | None, ...]


def arm_order(arm: str) -> int:
    """The order of style.MARKS: an arm that must lie on another one is drawn after it."""
    return list(MARKS).index(arm) if arm in MARKS else len(MARKS)


def has(cells: Sequence[Cell], arms: Sequence[str]) -> list[str]:
    """Those of the arms that were run in one of the cells."""
    there = {arm for cell in cells for arm in cell.arms}
    return [arm for arm in arms if arm in there]


def slug(*parts: object) -> str:
    """A panel's name: 'sweep-kl-walsh-k-2'."""
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, parts)).lower()).strip("-")


def level_panel(
    cells: Sequence[Cell],
    arms: Sequence[str],
    measure: str = "kl",
    *,
    title: str,
    name: str,
    width: int = 1,
) -> Panel:
    """A measure against N, one line an arm. cells: of one setting. width: legend columns."""
    unit, log = UNITS[measure]
    lines = [line for arm in has(cells, arms) if (line := _level_line(cells, arm, measure)).at]

    def draw(ax: Axes) -> None:
        for i, line in enumerate(lines):
            shift = 1.025 ** (i - (len(lines) - 1) / 2)
            draw_line(ax, [float(n) * shift for n in line.at], line, positive=log)
        ns = sorted({int(n) for line in lines for n in line.at})
        ax.set_xscale("log")
        ax.set_xticks(ns, [str(n) for n in ns])
        ax.xaxis.set_minor_formatter(NullFormatter())
        if log:
            log_axis(ax, [mean.value for line in lines for mean in line.means])
        ax.minorticks_off()
        ax.set_xlabel("preference pairs N")
        ax.set_ylabel(unit)
        two_line_title(ax, title)
        legend_below(ax, width)

    said = "; ".join(
        f"{line.name} at N = {n}: {said_mean(mean)}"
        for line in lines
        for n, mean in zip(line.at, line.means, strict=True)
    )
    height = 2.6 + 0.17 * -(-len(lines) // width)
    return Panel(name, draw, f"{unit} against N, {flat(title)}. {said}", height)


def arms_panel(cell: Cell, arms: Sequence[str], *, title: str, name: str) -> Panel:
    """The KL of every arm at one N: one row an arm."""
    unit, _ = UNITS["kl"]
    found = [(arm, mean) for arm in has([cell], arms) if (mean := level(cell, arm)) is not None]

    def draw(ax: Axes) -> None:
        for i, (arm, mean) in enumerate(found):
            colour, marker = mark(arm)
            ax.errorbar(
                mean.value, i, xerr=mean.half or 0.0, color=colour, marker=marker, capsize=2.0
            )
            beside = level(cell, arm, HINDSIGHT)
            if beside is not None:
                ax.plot(beside.value, i + 0.22, marker, color=colour, mfc="none", ms=3.6, mew=0.8)
        names = ["\n".join(textwrap.wrap(label(arm), NAME_WIDTH)) for arm, _ in found]
        ax.set_yticks(range(len(found)), names)
        ax.set_ylim(len(found) - 0.5, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlim(left=0.0)
        ax.set_xlabel(unit)
        two_line_title(ax, title, NARROW)

    said = "; ".join(f"{label(arm)}: {said_mean(mean)}" for arm, mean in found)
    return Panel(name, draw, f"{unit}, {flat(title)}. {said}", height=1.2 + 0.3 * len(found))


def _level_line(cells: Sequence[Cell], arm: str, measure: str) -> Line:
    found = [(cell, mean) for cell in cells if (mean := level(cell, arm, CHOSEN, measure))]
    return Line(
        label(arm),
        mark(arm),
        tuple(cell.n_pairs for cell, _ in found),
        tuple(mean for _, mean in found),
        tuple(level(cell, arm, HINDSIGHT, measure) for cell, _ in found),
    )


def gap_line(cells: dict[At, Cell], arm: str, name: str, look: tuple[str, str]) -> Line | None:
    """The gap of one arm to two-stage along an axis; None with fewer than two places."""
    found = [(at, cells[at], mean) for at in in_order(cells) if (mean := gap(cells[at], arm))]
    if len(found) < 2:
        return None
    return Line(
        name,
        look,
        tuple(at for at, _, _ in found),
        tuple(mean for _, _, mean in found),
        tuple(gap(cell, arm, HINDSIGHT) for _, cell, _ in found),
    )


def track_lines(track: Track) -> list[Line]:
    """What a panel of the gap shows: lines of N or of the reward class, else of the arms."""
    middle = middle_n(track)
    lines: list[Line | None] = []
    if any(name for _, name in track.lines):
        for (n, name), cells in track.lines.items():
            if n == middle:
                look = CLASS_LOOKS.get(name, (ORANGE, "v"))
                lines.append(gap_line(cells, ALL, CLASS_NAMES.get(name, value_words(name)), look))
    elif len(track.ns) == 1:
        for arm in (ALL, PROPER, MATCHED):
            lines.append(gap_line(track.lines[middle, ""], arm, label(arm), mark(arm)))
    else:
        whole = [n for n in track.ns if len(track.lines[n, ""]) == track.length]
        shown = spread_out(whole, len(N_LOOKS))
        for n, look in zip(shown, N_LOOKS, strict=False):
            lines.append(gap_line(track.lines[n, ""], ALL, f"N = {n}", look))
        same = f"matched, N = {middle}"
        lines.append(gap_line(track.lines[middle, ""], MATCHED, same, mark(MATCHED)))
    return [line for line in lines if line is not None]


def middle_n(track: Track) -> int:
    """The N with the most places on the axis; among equals the middle one."""
    size = {n: sum(len(line) for (m, _), line in track.lines.items() if m == n) for n in track.ns}
    most = [n for n in track.ns if size[n] == max(size.values())]
    return most[len(most) // 2]


def gap_panel(track: Track) -> Panel | None:
    """The gap along an axis, or None where two-stage or the offline arm was not run."""
    lines = track_lines(track)
    if not lines:
        return None
    axis = track.axis
    some = track.cells[0]
    held = [family_words(some.kind), setting_words(track.rest)]
    if len(track.ns) == 1 or any(name for _, name in track.lines):
        held.append(f"N = {middle_n(track)}")
    title = f"{axis.title}\n{', '.join(filter(None, held))}"
    name = slug("sweep-gap", axis.name, some.kind, *track.rest.values(), axis.held(some) or "")
    return lines_panel(name, title, axis.unit or complexity_words(some), lines, log=axis.log)


def lines_panel(
    name: str, title: str, unit: str, lines: Sequence[Line], *, log: bool = False
) -> Panel:
    """The gap of several lines over numbers or names."""
    names = not all(isinstance(at, int | float) for line in lines for at in line.at)
    places = in_order({at for line in lines for at in line.at})
    log = log and not names and all(float(at) > 0 for at in places)

    def draw(ax: Axes) -> None:
        for line in lines:
            where = [float(places.index(at)) if names else float(at) for at in line.at]
            draw_line(ax, where, line)
        ax.axhline(0.0, color=INK, lw=0.9)
        ticks = range(len(places)) if names else sorted(float(at) for at in places)
        words = [value_words(at) for at in (places if names else ticks)]
        if log:
            ax.set_xscale("log")
            ax.minorticks_off()
        ax.set_xticks(list(ticks), words)
        if names:
            ax.set_xlim(-0.4, len(places) - 0.6)
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.set_xlabel(unit)
        ax.set_ylabel("KL gap (nats)")
        two_line_title(ax, title)
        legend_below(ax, 2 if max(len(line.name) for line in lines) < 28 else 1)

    said = "; ".join(
        f"{line.name}, {value_words(at)}: {said_mean(mean, sign=True)}"
        for line in lines
        for at, mean in zip(line.at, line.means, strict=True)
    )
    height = 2.7 + 0.17 * len(lines)
    return Panel(name, draw, f"Gap in nats. {flat(title)}, {unit}. {said}", height)


def best_of_panel(cell: Cell, arms: Sequence[str], title: str, name: str) -> Panel | None:
    """Best-of-N from the reference by each arm's own score; None where no cell has a curve."""
    lines = []
    for arm in has([cell], arms):
        fits = [cell.fits.get((arm, choice)) for choice in CHOICES]
        first = fits[0]
        if first is None or first.best_of_n is None:
            continue
        means = [
            [mean_of(column) for column in fit.best_of_n.T]
            if fit is not None and fit.best_of_n is not None
            else [None] * len(first.counts)
            for fit in fits
        ]
        lines.append(Line(label(arm), mark(arm), first.counts, tuple(means[0]), tuple(means[1])))  # pyright: ignore
    if not lines:
        return None

    def draw(ax: Axes) -> None:
        for i, line in enumerate(lines):
            shift = 1.02 ** (i - (len(lines) - 1) / 2)
            draw_line(ax, [float(n) * shift for n in line.at], line)
        counts = lines[0].at
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.set_xticks([float(n) for n in counts], [str(n) for n in counts])
        ax.set_xlabel("best of how many samples of the reference")
        ax.set_ylabel("true reward gained (reward units)")
        two_line_title(ax, title)
        legend_below(ax, 1)

    said = "; ".join(
        f"{line.name}, best of {n}: {said_mean(mean, sign=True)}"
        for line in lines
        for n, mean in zip(line.at, line.means, strict=True)
    )
    return Panel(name, draw, f"Best of N, {flat(title)}. {said}", 2.6 + 0.17 * len(lines))


# --- parts of a panel -----------------------------------------------------------------------------


def draw_line(ax: Axes, x: Sequence[float], line: Line, *, positive: bool = False) -> None:
    """Means with intervals; hollow and dotted beside them the best in hindsight.

    positive: on a log axis a lower end below 0 is cut at a tenth of the mean.
    """
    y = np.array([mean.value for mean in line.means])
    half = np.array([mean.half or 0.0 for mean in line.means])
    lower = np.minimum(half, 0.9 * np.abs(y)) if positive else half
    colour, marker = line.look
    places = np.asarray(x)
    order = np.argsort(places)
    bars = np.stack([lower, half])
    ax.errorbar(
        places[order], y[order], yerr=bars[:, order], color=colour, marker=marker, capsize=2.0,
        elinewidth=1.0, label=line.name, zorder=3,
    )  # fmt: skip
    kept = [int(i) for i in order if line.hindsight[i] is not None]
    beside = [mean.value for i in kept if (mean := line.hindsight[i]) is not None]
    fill = colour if marker in "x+" else "none"
    ax.plot(places[kept], beside, marker, color=colour, mfc=fill, ls=":", lw=0.8, ms=3.6, mew=0.8)


def log_axis(ax: Axes, values: Sequence[float]) -> None:
    """A log y axis with plain numbers, where every value allows it."""
    if min(values) <= 0:
        return
    ax.set_yscale("log")
    few = max(values) / min(values) < 30
    plain_log(ax.yaxis, few=few)


def plain_log(axis: Axis, *, few: bool) -> None:
    """Plain numbers on a log axis, at 1, 2 and 5 of each decade where it has few decades."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def complexity_words(cell: Cell) -> str:
    """The family's own complexity as an axis label."""
    return COMPLEXITIES.get(cell.family, cell.complexity_name.replace("_", " "))


def said_mean(mean: Mean, *, sign: bool = False) -> str:
    """A mean with its interval, for those who do not see the picture."""
    beside = "" if mean.half is None else f" ± {number(mean.half)}"
    return number(mean.value, sign=sign) + beside


def flat(title: str) -> str:
    """A title in one line."""
    return title.replace("\n", ", ")
