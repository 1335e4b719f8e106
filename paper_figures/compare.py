"""The two kinds of panel that the figures share: levels, and prediction against measurement."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from paper_figures.levels import Level, size_words, sizes, verdict_size
from paper_figures.prose import arms_words, margin_of, number, parse_quantity, quantity_words
from paper_figures.records import Study
from paper_figures.style import GRID, INK, MEASURED, PREDICTED, Panel, label, mark
from theory.predictions import Verdict

LONG = 34  # characters of a row's name that fit beside its verdict
DIFFERENCE_CAPTION = (
    "Differences: open diamond, the prediction of the toy rung with its standard error; dots, one "
    "for each seed; bar, the mean over seeds with the interval named in the verdict table. "
    "Pale band: paired bootstrap within one seed. "
    "An interval that leaves the frame ends in an arrow. Shaded: the predicted side of 0, or the "
    "margin inside which a difference counts as none."
)
LEVEL_CAPTION = (
    "Levels: dots, one for each seed; bar, their mean, with the interval where one was recorded; "
    "under a name, the mean length of its samples."
)
CONTROLLED_CAPTION = "Hollow square: the length-controlled win rate."


def levels_panel(
    name: str,
    title: str,
    axis: str,
    rows: Sequence[Level],
    *,
    reference: float | None = None,
    beside: Sequence[Level] = (),
) -> Panel:
    """One row a method: every seed as a point, the mean as a bar. axis: its label with the unit.

    reference: a value to mark (0.5 for a win rate). beside: what the panels next to it show, so
    that all share one axis.
    """

    def draw(ax: Axes) -> None:
        shown = [*rows, *beside]
        values = [value for row in shown for value in row.per_seed]
        values += [row.controlled for row in shown if row.controlled is not None]
        frame = _frame(values if reference is None else [*values, reference])
        for i, row in enumerate(rows):
            colour, marker = mark(row.name)
            if row.low is not None and row.high is not None:
                _bar(ax, i, row.low, row.high, colour, frame)
            offsets = _spread(len(row.per_seed), 0.16)
            ax.plot(row.per_seed, i + offsets, marker, color=colour, ms=4, alpha=0.75, ls="none")
            ax.plot([row.mean, row.mean], [i - 0.32, i + 0.32], color=colour, lw=2)
            if row.controlled is not None:
                ax.plot(row.controlled, i + 0.3, "s", mfc="none", mec=colour, ms=4.5)
        ax.set_xlim(*frame)
        if reference is not None:
            ax.axvline(reference, color=INK, lw=0.8, ls=":")
        ax.set_yticks(range(len(rows)), [_row_name(row) for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel(axis)
        ax.set_title(title)

    means = "; ".join(f"{label(row.name)} {number(row.mean)}" for row in rows)
    return Panel(name, draw, f"{title}, means over seeds: {means}", height=0.95 + 0.38 * len(rows))


def _row_name(row: Level) -> str:
    tokens = "" if row.tokens is None else f"\n{number(row.tokens, 1)} tokens"
    return textwrap.fill(label(row.name), 20) + tokens


def differences_panels(
    figure: str, study: Study | None, verdicts: Sequence[Verdict]
) -> list[Panel]:
    """The verdicts on a figure: one panel a size and unit, as units share no axis."""
    rows = [row for row in verdicts if row.prediction.figure == figure]
    at = {"": rows} if study is None else _by_size(study, rows)
    made = []
    for size, mine in at.items():
        words = "" if study is None or len(at) == 1 else f", {size_words(study, size)}"
        for i, unit in enumerate(dict.fromkeys(row.prediction.unit for row in mine), 1):
            name = (
                f"{figure}-differences" + (f"-{size}" if size else "") + (f"-{i}" if i > 1 else "")
            )
            of_unit = [row for row in mine if row.prediction.unit == unit]
            title = f"{_difference_title(of_unit)}{words}"
            made.append(differences_panel(name, title, unit, of_unit))
    return made


def _difference_title(rows: Sequence[Verdict]) -> str:
    parts = [parse_quantity(row.prediction.quantity) for row in rows]
    metrics = {part.metric for part in parts if part is not None}
    if len(metrics) == 1:
        return f"Differences in {label(metrics.pop())}"
    return "Predicted and measured differences"


def _by_size(study: Study, rows: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    found = {size: [r for r in rows if verdict_size(study, r) == size] for size in sizes(study)}
    return {size: mine for size, mine in found.items() if mine}


def differences_panel(name: str, title: str, axis: str, rows: Sequence[Verdict]) -> Panel:
    """One row a prediction: predicted value above, measured value below, 0 marked."""

    def draw(ax: Axes) -> None:
        frame = _frame([0.0, *(value for row in rows for value in _points(row))])
        ax.set_xlim(*frame)
        for i, row in enumerate(rows):
            _shade(ax, i, row, frame)
            _draw_row(ax, i, row, frame)
        ax.set_ylim(len(rows) - 0.35, -0.85)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel(axis)
        ax.set_title(title, pad=18)
        _legend(ax)

    said = "; ".join(f"{quantity_words(row.prediction.quantity)}: {row.outcome}" for row in rows)
    return Panel(name, draw, f"{title}. {said}", height=1.25 + 0.62 * len(rows))


def _draw_row(ax: Axes, i: int, row: Verdict, frame: tuple[float, float]) -> None:
    parts = parse_quantity(row.prediction.quantity)
    words = row.prediction.quantity if parts is None else arms_words(parts)
    if parts is not None and parts.metric == "gap":
        words = f"gap of {words}"
    across = ax.get_yaxis_transform()
    points = 7.0 if len(words) > LONG else 8.0
    ax.text(0.0, i - 0.47, words, transform=across, va="center", weight="bold",
            fontsize=points)  # fmt: skip
    ax.text(
        1.0, i - 0.47, row.outcome, transform=across, va="center", ha="right", style="italic",
        fontsize=points,
    )  # fmt: skip
    ax.plot([0.0, 0.0], [i - 0.3, i + 0.36], color=INK, lw=0.9)
    predicted, measured = row.prediction, row.measurement
    if predicted.value is not None:
        error = predicted.error or 0.0
        _bar(ax, i - 0.15, predicted.value - error, predicted.value + error, PREDICTED, frame)
        ax.plot(predicted.value, i - 0.15, "D", mfc="none", mec=PREDICTED, mew=1.4, ms=5, zorder=4)
    if measured is None:
        return
    if measured.low is not None and measured.high is not None:
        _bar(ax, i + 0.17, measured.low, measured.high, MEASURED, frame)
    if measured.per_seed:
        offsets = _spread(len(measured.per_seed), 0.07)
        for inside, offset in zip(measured.within or (), offsets, strict=False):
            if inside is not None:
                ax.plot(inside, [i + 0.17 + offset] * 2, color=MEASURED, lw=3.2, alpha=0.2)
        ax.plot(
            measured.per_seed, i + 0.17 + offsets, "o", color=MEASURED, ms=3.4, alpha=0.7, ls="none"
        )
    if measured.value is not None:
        ax.plot([measured.value] * 2, [i + 0.02, i + 0.32], color=MEASURED, lw=2.2, zorder=4)


def _bar(
    ax: Axes, y: float, low: float, high: float, colour: str, frame: tuple[float, float]
) -> None:
    """A horizontal interval, cut at the frame; a cut end becomes an arrow head."""
    left, right = max(low, frame[0]), min(high, frame[1])
    if left > right:
        return
    ax.plot([left, right], [y, y], color=colour, lw=1.3, solid_capstyle="butt")
    for end, cut, head in ((left, low < frame[0], "<"), (right, high > frame[1], ">")):
        ax.plot(end, y, head if cut else "|", color=colour, ms=5, clip_on=False)


def _shade(ax: Axes, i: int, row: Verdict, frame: tuple[float, float]) -> None:
    """Shade the predicted side of 0, or the margin of an equality, behind one row."""
    low, high = frame
    if row.prediction.relation == "equal":
        margin = margin_of(row)
        low, high = max(low, -margin), min(high, margin)
    elif row.prediction.relation == "greater":
        low = 0.0
    else:
        high = 0.0
    ax.fill_betweenx([i - 0.3, i + 0.36], low, high, color=GRID, alpha=0.13, lw=0)


def _legend(ax: Axes) -> None:
    handles = [
        Line2D(
            [],
            [],
            marker="D",
            mfc="none",
            mec=PREDICTED,
            color=PREDICTED,
            mew=1.4,
            label="predicted",
        ),
        Line2D([], [], marker="o", color=MEASURED, label="measured"),
    ]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=2, borderaxespad=0
    )


def _points(row: Verdict) -> list[float]:
    """What must lie inside the frame: seeds, means, the prediction with its error."""
    predicted, measured = row.prediction, row.measurement
    points: list[float] = []
    if predicted.relation == "equal":
        points += [-margin_of(row), margin_of(row)]
    if predicted.value is not None:
        error = predicted.error or 0.0
        points += [predicted.value - error, predicted.value + error]
    if measured is not None:
        points += list(measured.per_seed) + ([] if measured.value is None else [measured.value])
    return points


def _frame(values: Sequence[float]) -> tuple[float, float]:
    """Axis limits around the points with a margin of 18%."""
    low, high = min(values), max(values)
    pad = 0.18 * (high - low) or 0.1 * (abs(high) or 1.0)
    return low - pad, high + pad


def _spread(n: int, width: float) -> np.ndarray:
    """Offsets (n,) that keep the seeds' points apart."""
    return np.linspace(-width, width, n) if n > 1 else np.zeros(1)
