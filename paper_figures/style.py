"""The one look of every figure: palette, names, sizes, and how a figure becomes SVG or PNG.

The colours are Okabe and Ito's, which stay apart for colour-blind readers; every series also has
its own marker. Figures are made of small panels, so that a phone can stack what a paper sets side
by side. No pyplot: nothing here keeps state between figures.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.transforms import ScaledTranslation

INK = "#1b1f24"  # becomes currentColor inside the page, so that a dark page stays readable
GRID = "#8a9099"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9",
)  # fmt: skip
PREDICTED, MEASURED = PURPLE, BLUE

LABELS = {
    "sft": "SFT",
    "dpo": "DPO",
    "dpo_2x": "DPO (2x)",
    "online_dpo_sft": "Online DPO (SFT)",
    "online_dpo_dpo": "Online DPO (DPO)",
    "global_rm": "Global RM",
    "local_rm": "Local RM",
    "dpo_rm": "DPO RM",
    "global_rm_matched": "Global RM, matched",
    "online_dpo_sft_more_prompts": "Online DPO (SFT), more prompts",
    "local_rm_policy": "Local RM, as a policy",
    "fig3": "Fig. 3",
    "fig5": "Fig. 5",
    "two_stage": "two-stage (reward, then soft RL)",
    "offline_all": "offline, all policies",
    "offline_all_one_hot": "offline, all policies (one-hot logits)",
    "offline_proper": "offline, only policies of the reward class",
    "offline_matched": "offline, policies matched in capacity",
    "two_stage_full": "two-stage over all rewards",
    "online_population_sft": "Online DPO (SFT), all pairs known",
    "online_population_dpo": "Online DPO (DPO), all pairs known",
    "mlp_two_stage": "MLP: two-stage",
    "mlp_offline": "MLP: offline",
    "mlp_dpo": "MLP: DPO",
    "transformer_two_stage": "transformer: two-stage",
    "transformer_offline": "transformer: offline",
    "transformer_dpo": "transformer: DPO",
    "win_rate": "win rate",
    "rouge_l": "ROUGE-L F1",
    "mean_tokens": "mean tokens",
    "ended_rate": "ended with EOS",
    "kl_to_optimum": "KL to the optimum",
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "val_accuracy_on_dpo_pairs": "accuracy on pairs of DPO",
    "length_controlled_win_rate": "length-controlled win rate",
    "kl": "KL to the optimum",
}
MARKS = {  # colour and marker of every policy, reward model and arm
    "sft": (GRID, "s"),
    "dpo": (BLUE, "o"),
    "dpo_2x": (SKY, "o"),
    "online_dpo_sft": (ORANGE, "v"),
    "online_dpo_dpo": (PURPLE, "D"),
    "global_rm": (GREEN, "o"),
    "local_rm": (ORANGE, "s"),
    "dpo_rm": (BLUE, "^"),
    "global_rm_matched": (SKY, "D"),
    "online_dpo_sft_more_prompts": (VERMILION, "^"),
    "local_rm_policy": (GREEN, "s"),
    "fig3": (BLUE, "o"),
    "fig5": (BLUE, "o"),
    "two_stage": (GREEN, "o"),
    "two_stage_full": (SKY, "P"),
    "offline_all": (VERMILION, "^"),
    "offline_all_one_hot": (ORANGE, "v"),
    "offline_proper": (BLUE, "x"),
    "offline_matched": (PURPLE, "D"),
    "online_population_sft": (SKY, "P"),
    "online_population_dpo": (BLUE, "s"),
    "mlp_two_stage": (BLUE, "s"),
    "mlp_offline": (VERMILION, "^"),
    "mlp_dpo": (ORANGE, "v"),
    "transformer_two_stage": (SKY, "P"),
    "transformer_offline": (PURPLE, "D"),
    "transformer_dpo": (GRID, "<"),
}
RC: Any = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "legend.frameon": False,
    "legend.fontsize": 7.2,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "mathtext.default": "regular",
    "svg.hashsalt": "all-roads",
    "savefig.dpi": 200,
}
BEST_OF_N = re.compile(r"(?:best_of_(?P<n>\d+)|bon)_(?P<source>sft|dpo)_(?P<by>\w+_rm)")
EXTREME = re.compile(r"best_of_(?P<n>\d+)_(?P<which>largest|smallest)_(?P<side>rm|policy)")
SIDES = {"rm": "RM", "policy": "policy"}
WIDTH = 3.7  # inches, one panel
PAD = 0.07  # inches around a panel
LEGEND_DROP = 0.42  # inches from the axis to the legend below it
SUBTITLE, SUBTITLE_WIDTH = 6.8, 62  # points; characters a line


@dataclass(frozen=True)
class Panel:
    """One small plot: how to draw it, how tall it is (inches), and what it says without eyes."""

    name: str
    draw: Callable[[Axes], None]
    alt: str
    height: float = 2.7


@dataclass(frozen=True)
class Picture:
    """Panels that belong together, with the caption that names units and intervals."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    caption: str


def label(name: str) -> str:
    """The printed name of a policy, model, arm or metric; unknown names stand as they are."""
    if found := BEST_OF_N.fullmatch(name):
        n = f"best of {found['n']}" if found["n"] else "best of N"
        return f"{n} {label(found['source'])} samples by {label(found['by'])}"
    if found := EXTREME.fullmatch(name):
        return f"best of {found['n']} with the {found['which']} {SIDES[found['side']]}"
    return LABELS.get(name, name.replace("_", " "))


def mark(name: str) -> tuple[str, str]:
    """Colour and marker of a policy, reward model or arm."""
    return MARKS.get(name, (GRID, "o"))


def legend_below(ax: Axes, columns: int = 1, **options: Any) -> None:
    """The legend under the label of the x axis, at a distance that no panel's height changes."""
    figure = ax.get_figure()
    assert figure is not None
    below = ScaledTranslation(0.0, -LEGEND_DROP, figure.dpi_scale_trans)
    ax.legend(
        loc="upper left", bbox_to_anchor=(0.0, 0.0), bbox_transform=ax.transAxes + below,
        borderaxespad=0.0, ncols=columns, columnspacing=1.2, **options,
    )  # fmt: skip


def two_line_title(ax: Axes, title: str, width: int = SUBTITLE_WIDTH) -> None:
    """The first line bold; the rest small, wrapped to the width of a panel, in characters."""
    first, _, rest = title.partition("\n")
    lines = textwrap.wrap(rest, width)
    ax.set_title(first, pad=5 + 9.5 * len(lines))
    if lines:
        text = "\n".join(lines)
        ax.annotate(
            text, (0.0, 1.0), (0.0, 3.0), "axes fraction", "offset points", fontsize=SUBTITLE
        )


def panel_svg(panel: Panel) -> str:
    """One panel as inline SVG: text stays text, ink follows the page, ids are its own."""
    with matplotlib.rc_context({**RC, "svg.fonttype": "none"}):
        return _inline(_svg(_figure((panel,)), transparent=True), panel.name, panel.alt)


def picture_files(picture: Picture) -> dict[str, bytes]:
    """A whole picture as files, {"svg": ..., "png": ...}, on white; the same bytes every time."""
    with matplotlib.rc_context({**RC, "svg.fonttype": "path"}):
        figure = _figure(picture.panels)
        png = io.BytesIO()
        figure.savefig(png, format="png", facecolor="white", metadata={"Software": None})
        return {"svg": _svg(figure, transparent=False).encode(), "png": png.getvalue()}


def _figure(panels: Sequence[Panel]) -> Figure:
    """Panels side by side, at most two in a row, each as tall and laid out as if it were alone."""
    across = min(len(panels), 2)
    rows = [panels[i : i + across] for i in range(0, len(panels), across)]
    heights = [max(panel.height for panel in row) for row in rows]
    width, height = WIDTH * across, sum(heights)
    figure = Figure(figsize=(width, height))
    for i, row in enumerate(rows):
        top = height - sum(heights[:i])
        for j, panel in enumerate(row):
            left, bottom, wide, high = _place(panel)
            left, bottom = WIDTH * j + left, top - panel.height + bottom
            bounds = (left / width, bottom / height, wide / width, high / height)
            panel.draw(figure.add_axes(bounds))
    return figure


def _place(panel: Panel) -> tuple[float, float, float, float]:
    """(left, bottom, width, height) in inches of a panel's axes where nothing is cut off.

    Rounded, because the last bits of the layout differ from run to run.
    """
    engine = ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD)
    figure = Figure(figsize=(WIDTH, panel.height), layout=engine, dpi=RC["savefig.dpi"])
    ax = figure.add_subplot()
    panel.draw(ax)
    engine.execute(figure)
    left, bottom, wide, high = (round(edge, 4) for edge in ax.get_position().bounds)
    return left * WIDTH, bottom * panel.height, wide * WIDTH, high * panel.height


def _svg(figure: Figure, *, transparent: bool) -> str:
    out = io.StringIO()
    bare = {"Date": None, "Creator": None, "Format": None, "Type": None}
    ground = "none" if transparent else "white"
    figure.savefig(out, format="svg", facecolor=ground, transparent=transparent, metadata=bare)
    return out.getvalue()


def _inline(svg: str, name: str, alt: str) -> str:
    """Make a standalone SVG fit for a page that holds many: no fixed size, no clashing ids."""
    body = svg[svg.index("<svg") :]
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None, "matplotlib always writes a viewBox"
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'href="#', f'href="#{prefix}-', rest)
    rest = rest.replace("url(#", f"url(#{prefix}-").replace(INK, "currentColor")
    open_tag = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box.group(0)} role="img" aria-label="{_attribute(alt)}">'
    )
    return open_tag + rest


def _attribute(text: str) -> str:
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(raw, safe)
    return text
