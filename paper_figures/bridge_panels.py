"""Panels of the bridge's verdicts: claim by cell, and predicted against measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from paper_figures.bridge_records import BridgeRow
from paper_figures.prose import MINUS, figure_name, quantity_words, tally
from paper_figures.style import BLUE, GRID, INK, ORANGE, VERMILION, Panel, legend_below

OUTCOMES = {  # colour, marker, size, fill; what is drawn last lies on top
    "inconclusive": (ORANGE, "s", 3.2, "none"),
    "supported": (BLUE, "o", 4.4, BLUE),
    "contradicted": (VERMILION, "X", 6.2, VERMILION),
}
OTHER = (GRID, "_", 4.4, GRID)  # not measured, or not to be judged
LINEAR = 0.01  # a difference's axis is linear below this, logarithmic beyond
TICKS = (-1.0, -0.1, -LINEAR, 0.0, LINEAR, 0.1, 1.0)
SMALL = 5.6  # points, of a claim beside the map


def verdict_map(rows: Sequence[BridgeRow]) -> Panel:
    """A line a claim, a column a cell, a mark a verdict: what is contradicted is seen at once."""
    claims = list(dict.fromkeys(map(_claim, rows)))
    cells = list(dict.fromkeys(row.cell for row in rows))
    at = [(cells.index(row.cell), claims.index(_claim(row)), row.outcome) for row in rows]

    def draw(ax: Axes) -> None:
        for x, y, outcome in at:
            _mark(ax, x, y, outcome)
        ax.set_xlim(-0.6, len(cells) - 0.4)
        ax.set_ylim(len(claims) - 0.4, -0.6)
        ax.set_xticks(range(len(cells)), cells, rotation=90, fontsize=6.4)
        ax.set_yticks(range(len(claims)), claims, fontsize=SMALL)
        ax.tick_params(length=0)
        ax.set_title("Verdicts on the paper's claims (figure)", loc="right")
        handles = _handles(row.outcome for row in rows)
        ax.legend(handles=handles, loc="upper right", bbox_to_anchor=(-0.1, -0.02))

    alt = f"Verdicts by claim and cell: {tally(row.outcome for row in rows)}"
    return Panel("bridge-verdicts", draw, alt, 1.5 + 0.17 * len(claims))


def _claim(row: BridgeRow) -> str:
    """The claim in words and its figure's number; "> 0" goes without saying."""
    sign = {"less": " < 0", "equal": f" = 0 \N{PLUS-MINUS SIGN} {row.margin or 0:g}"}
    claim = quantity_words(row.name) + sign.get(row.relation, "")
    return f"{claim} ({figure_name(row.measure).removeprefix('Fig. ')})"


def signs_panel(name: str, title: str, unit: str, rows: Sequence[BridgeRow]) -> Panel:
    """Predicted value across, measured value with its interval upwards; the contradicted on top.

    unit: of both axes.
    """
    order = ["inconclusive", "supported", "contradicted"]
    drawn = [
        (row.predicted, row.value, row)
        for row in sorted(rows, key=lambda row: order.index(row.outcome))
        if row.predicted is not None and row.value is not None
    ]

    def draw(ax: Axes) -> None:
        wide = max(LINEAR, *(abs(x) for x, _, _ in drawn)) * 1.4
        ends = [abs(end) for _, _, row in drawn for end in (row.low, row.high) if end is not None]
        high = max([LINEAR, *ends, *(abs(y) for _, y, _ in drawn)]) * 1.4
        ax.fill_between([0, wide], 0, high, color=GRID, alpha=0.13, lw=0)
        ax.fill_between([-wide, 0], -high, 0, color=GRID, alpha=0.13, lw=0)
        ax.axhline(0.0, color=INK, lw=0.7)
        ax.axvline(0.0, color=INK, lw=0.7)
        for x, y, row in drawn:
            pale = 0.35 if row.outcome == "inconclusive" else 0.9
            if row.low is not None and row.high is not None:
                colour = OUTCOMES[row.outcome][0]
                ax.plot([x, x], [row.low, row.high], color=colour, lw=0.8, alpha=pale)
            _mark(ax, x, y, row.outcome)
        ax.set_xscale("symlog", linthresh=LINEAR)
        ax.set_yscale("symlog", linthresh=LINEAR)
        for axis, end in ((ax.xaxis, wide), (ax.yaxis, high)):
            axis.set_major_locator(FixedLocator([tick for tick in TICKS if abs(tick) <= end]))
            axis.set_major_formatter(FuncFormatter(_tick))
        ax.set_xlim(-wide, wide)
        ax.set_ylim(-high, high)
        ax.set_xlabel(f"predicted by the toy forecast ({unit})")
        ax.set_ylabel(f"measured ({unit})")
        ax.set_title(title)
        legend_below(ax, 3, handles=_handles(row.outcome for _, _, row in drawn))

    return Panel(name, draw, f"{title}: {sign_sentence(rows)}", 3.2)


def _tick(value: float, _: object) -> str:
    return f"{value:g}".replace("-", MINUS)


def _mark(ax: Axes, x: float, y: float, outcome: str) -> None:
    colour, marker, size, fill = OUTCOMES.get(outcome, OTHER)
    edge = "none" if marker == "X" else colour
    ax.plot(x, y, marker, color=colour, ms=size, mfc=fill, mec=edge, mew=0.8)


def _handles(outcomes: Iterable[str]) -> list[Line2D]:
    """A mark for each outcome that there is, the contradicted first."""
    found = set(outcomes)
    known = [name for name in reversed(OUTCOMES) if name in found]
    return [
        Line2D([], [], color=colour, marker=marker, ms=size, mfc=fill, ls="none", label=name)
        for name in [*known, *sorted(found - set(OUTCOMES))]
        for colour, marker, size, fill in [OUTCOMES.get(name, OTHER)]
    ]


def sign_sentence(rows: Sequence[BridgeRow]) -> str:
    """How often toy and transformer are on one side of 0, and the verdicts."""
    both = [(r.predicted, r.value) for r in rows if r.predicted and r.value]
    same = sum((a > 0) == (b > 0) for a, b in both)
    words = tally(row.outcome for row in rows)
    return f"{words}; {same} of {len(both)} measured on the forecast's side of 0"
