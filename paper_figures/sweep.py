"""The proper-learning sweep: KL to the optimum against N, and the gap between two arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats

from paper_figures.prose import number
from paper_figures.style import (
    BLUE,
    INK,
    MARKS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Panel,
    Picture,
    label,
    mark,
)
from paper_figures.tables import SweepRecord

SETTING = ("family", "degree", "class_degree", "sharpness", "horizon", "bits", "beta")
WORDS = {
    "degree": "k",
    "class_degree": "class k",
    "sharpness": "s",
    "horizon": "H",
    "width": "bits a token",
    "bits": "bits",
    "beta": "beta",
}
FIRST, ALL = "two_stage", "offline_all"
AXES = (  # what varies, and what varies along with it
    ("degree", ("width",)),
    ("horizon", ("width",)),  # larger tokens: the same completions cut into fewer pieces
    ("horizon", ("bits",)),  # fewer tokens of one vocabulary
)
SAME = "k"  # a class degree that is the true degree
N_MARKS = ((SKY, "o"), (BLUE, "s"), (INK, "D"), (ORANGE, "^"), (VERMILION, "v"), (PURPLE, "P"))
CAPTION = (
    "KL(policy || optimum) in nats, exact by enumeration. Each arm at its best ridge strength in "
    "hindsight; points are means over replicates, bars 95% t intervals over replicates. The gap is "
    "paired by replicate: the offline arm less {0}. k: degree of the reward (class k: of the "
    "fitted class, where it differs); s: standard deviation of the reward; H: tokens. Points at "
    "one N are set apart sideways."
)


@dataclass(frozen=True)
class Mean:
    """A mean over replicates with its 95% t interval (half width, None below two replicates)."""

    value: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Point:
    """One arm in one setting at one N, at its best ridge. kl: nats, (replicates,) by seed."""

    setting: tuple[tuple[str, object], ...]
    n_pairs: int
    arm: str
    ridge: float
    seeds: np.ndarray
    kl: np.ndarray

    @property
    def mean(self) -> Mean:
        """Mean KL over replicates."""
        return mean_of(self.kl)


def mean_of(values: np.ndarray) -> Mean:
    """Mean and half width of the 95% t interval of (n,) values."""
    n = len(values)
    half = None
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Mean(float(np.mean(values)), half, n)


def points(sweep: SweepRecord) -> tuple[Point, ...]:
    """Every (setting, N, arm) at the ridge with the least mean KL.

    A cell that two blocks of a grid share counts once.
    """
    columns = sweep.columns
    keys = [key for key in SETTING if key in columns]
    groups: dict[tuple, list[int]] = {}
    for i in range(len(sweep)):
        setting = _setting({key: _plain(columns[key][i]) for key in keys})
        at = (setting, int(columns["n_pairs"][i]), str(columns["arm"][i]))
        groups.setdefault(at, []).append(i)
    best = (_best(at, np.array(rows), columns) for at, rows in sorted(groups.items(), key=str))
    return tuple(sorted(best, key=lambda p: (str(p.setting), p.n_pairs, p.arm)))


def _best(at: tuple, rows: np.ndarray, columns: dict[str, np.ndarray]) -> Point:
    """Of one group's rows, those of the ridge with the least mean KL."""
    ridge, kl = columns["ridge"][rows].astype(float), columns["kl"][rows].astype(float)
    strengths = np.unique(ridge)
    _, once = np.unique(np.stack([ridge, columns["seed"][rows]]), axis=1, return_index=True)
    rows, ridge, kl = rows[once], ridge[once], kl[once]
    least = strengths[int(np.argmin([kl[ridge == strength].mean() for strength in strengths]))]
    chosen = ridge == least
    seeds = columns["seed"][rows][chosen]
    order = np.argsort(seeds)
    return Point(at[0], at[1], at[2], float(least), seeds[order], kl[chosen][order])


def _setting(values: dict[str, object]) -> tuple[tuple[str, object], ...]:
    """The coordinates of a row; a class degree that follows the true degree is no coordinate."""
    if values.get("class_degree") == values["degree"]:
        values["class_degree"] = SAME
    return tuple(values.items())


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def gaps(found: Sequence[Point]) -> dict[tuple[tuple, int, str], Mean]:
    """(setting, N, arm) -> mean of KL(arm) - KL(two-stage), nats, paired by replicate."""
    first = {(p.setting, p.n_pairs): p for p in found if p.arm == FIRST}
    out: dict[tuple[tuple, int, str], Mean] = {}
    for point in found:
        better = first.get((point.setting, point.n_pairs))
        if point.arm != FIRST and better is not None:
            shared, left, right = np.intersect1d(point.seeds, better.seeds, return_indices=True)
            if len(shared):
                key = (point.setting, point.n_pairs, point.arm)
                out[key] = mean_of(point.kl[left] - better.kl[right])
    return out


def sweep_picture(sweep: SweepRecord) -> Picture:
    """All panels that the sweep's data can fill."""
    found = points(sweep)
    settings = list(dict.fromkeys(p.setting for p in found))
    varied = _varied(settings)
    panels = []
    for setting in settings:
        rows = [p for p in found if p.setting == setting]
        if len({p.n_pairs for p in rows}) > 1 or len(settings) == 1:
            panels.append(_kl_panel(setting, rows, varied))
    gap = gaps(found)
    for axis, along in AXES:
        panels += _gap_panels(axis, along, gap)
    title = "The proper-learning gap in the sweep"
    return Picture("sweep", title, tuple(panels), CAPTION.format(label(FIRST)))


def _varied(settings: Sequence[tuple]) -> set[str]:
    values: dict[str, set] = {}
    for setting in settings:
        for key, value in setting:
            values.setdefault(key, set()).add(value)
    return {key for key, seen in values.items() if len(seen) > 1}


def setting_words(
    setting: tuple, leave_out: Sequence[str] = (), only: set[str] | None = None
) -> str:
    """'degree k = 2, s = 2, H = 8': the coordinates of a setting in words."""
    return ", ".join(
        f"{value}" if key == "family" else f"{WORDS[key]} = {_number(value)}"
        for key, value in setting
        if key not in leave_out and (only is None or key in only) and value != SAME
    )


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _kl_panel(setting: tuple, rows: Sequence[Point], varied: set[str]) -> Panel:
    title = setting_words(setting, only=varied | {"degree", "horizon"})

    def draw(ax: Axes) -> None:
        arms = sorted({p.arm for p in rows}, key=_arm_order)
        for i, arm in enumerate(arms):
            mine = sorted((p for p in rows if p.arm == arm), key=lambda p: p.n_pairs)
            _line(
                ax,
                [p.n_pairs * 1.025 ** (i - (len(arms) - 1) / 2) for p in mine],
                [p.mean for p in mine],
                mark(arm),
                label(arm),
                positive=True,
            )
        ns = sorted({p.n_pairs for p in rows})
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(ns, [str(n) for n in ns])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.set_xlabel("preference pairs N")
        ax.set_ylabel("KL to the optimum (nats)")
        ax.set_title(title)
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=1)

    said = "; ".join(f"{label(p.arm)} at N = {p.n_pairs}: {number(p.mean.value)}" for p in rows)
    name = "sweep-kl-" + "-".join(_number(value) for _, value in setting)
    height = 2.6 + 0.17 * len({p.arm for p in rows})
    return Panel(name, draw, f"KL in nats against N, {title}. {said}", height=height)


def _gap_panels(
    axis: str, along: tuple[str, ...], gap: dict[tuple[tuple, int, str], Mean]
) -> list[Panel]:
    """One panel for every way of holding the other coordinates fixed, where the axis varies."""
    groups: dict[tuple, dict[tuple[int, str], dict[float, Mean]]] = {}
    for (setting, n, arm), mean in gap.items():
        at: dict = dict(setting)
        at["width"] = at["bits"] // at["horizon"]
        rest = tuple((key, value) for key, value in at.items() if key not in (axis, *along))
        groups.setdefault(rest, {}).setdefault((n, arm), {})[at[axis]] = mean
    panels = []
    for rest, lines in groups.items():
        long = {key: line for key, line in lines.items() if len(line) > 1}
        if long:
            panels.append(_gap_panel(axis, rest, long))
    return panels


def _gap_panel(axis: str, rest: tuple, lines: dict[tuple[int, str], dict[float, Mean]]) -> Panel:
    """With several N one line an N (all policies only); with one N one line an offline arm."""
    several = len({n for n, _ in lines}) > 1
    if several:
        lines = {key: line for key, line in lines.items() if key[1] == ALL} or lines
    fixed = setting_words(rest, leave_out=("family", "beta"))
    at_n = "" if several else f", N = {next(iter(lines))[0]}"
    title = f"Gap against {axis}\n{fixed}{at_n}"
    looks = [N_MARKS[i % len(N_MARKS)] if several else mark(key[1]) for i, key in enumerate(lines)]
    names = [f"N = {n}" if several else label(arm) for n, arm in lines]

    def draw(ax: Axes) -> None:
        for line, look, name in zip(lines.values(), looks, names, strict=True):
            where = sorted(line)
            _line(ax, where, [line[at] for at in where], look, name)
        ax.axhline(0.0, color=INK, lw=0.9)
        ticks = sorted({at for line in lines.values() for at in line})
        ax.set_xticks(ticks, [_number(at) for at in ticks])
        ax.set_xlabel("degree k of the reward" if axis == "degree" else "horizon H (tokens)")
        ax.set_ylabel("KL gap (nats)")
        ax.set_title(title, fontsize=7.2)
        across = min(len(lines), 3) if several else 1
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.18), ncols=across)

    said = "; ".join(
        f"{name}, {axis} {_number(at)}: {number(mean.value, sign=True)}"
        for name, line in zip(names, lines.values(), strict=True)
        for at, mean in sorted(line.items())
    )
    panel = f"sweep-gap-{axis}-" + "-".join(_number(value) for _, value in rest)
    height = 2.7 + (0.17 if several else 0.17 * len(lines))
    return Panel(panel, draw, f"{title.replace(chr(10), ', ')}, nats. {said}", height=height)


def _arm_order(arm: str) -> int:
    """The order of style.MARKS: an arm that must lie on another one is drawn after it."""
    return list(MARKS).index(arm) if arm in MARKS else len(MARKS)


def _line(
    ax: Axes,
    x: Sequence[float],
    means: Sequence[Mean],
    look: tuple[str, str],
    name: str,
    *,
    positive: bool = False,
) -> None:
    """Means with intervals; on a log axis a lower end below 0 is cut at a tenth of the mean."""
    y = np.array([mean.value for mean in means])
    half = np.array([mean.half or 0.0 for mean in means])
    lower = np.minimum(half, 0.9 * y) if positive else half
    style = {"color": look[0], "marker": look[1], "capsize": 2.0, "elinewidth": 1.0}
    ax.errorbar(x, y, yerr=np.stack([lower, half]), label=name, **style)


def sweep_rows(sweep: SweepRecord) -> list[dict[str, str]]:
    """The numbers behind the panels, one row a (setting, N, arm), in words."""
    found = points(sweep)
    varied = _varied([p.setting for p in found]) | {"degree", "horizon"}
    return [
        {
            "setting": setting_words(p.setting, only=varied),
            "n": str(p.n_pairs),
            "arm": label(p.arm),
            "ridge": _number(p.ridge),
            "kl": number(p.mean.value),
            "half": number(p.mean.half),
            "replicates": str(p.mean.n),
        }
        for p in found
    ]
