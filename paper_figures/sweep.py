"""The proper-learning sweep in the report: groups of pictures, sentences and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paper_figures.efficiency import targets_panel
from paper_figures.efficiency_map import map_panels, settings_panel
from paper_figures.overview import central_words, first_kind, overview
from paper_figures.prose import ABSENT, number
from paper_figures.style import Panel, Picture, label
from paper_figures.sweep_axes import AXES, tracks
from paper_figures.sweep_findings import findings, pair_sentences
from paper_figures.sweep_panels import (
    MAIN,
    NETWORKS,
    ONLINE,
    arm_order,
    arms_panel,
    best_of_panel,
    gap_panel,
    has,
    level_panel,
    slug,
)
from paper_figures.sweep_records import CHOSEN, HINDSIGHT, Cell, SweepRecord
from paper_figures.sweep_scatter import complexity_panel, ratio_panel
from paper_figures.sweep_stats import centre, kinds, level, settings_of
from paper_figures.sweep_words import family_words, setting_words, varied

KL_CAPTION = (
    "KL(policy || optimum) in nats, exact by enumeration: means over replicates with 95% t "
    "intervals, each arm's candidate chosen by held-out pairs. Hollow and dotted: the best "
    "candidate in hindsight. Points at one N are set apart sideways."
)
RATIO_CAPTION = (
    "N offline over N two-stage to reach a stated KL, by interpolation between the N that were "
    "run; 95% bootstrap intervals over replicates. Arrows and ≥, ≤: one of the two arms does not "
    "reach it within them. Grey: neither does."
)
GAP_CAPTION = (
    "KL of the offline arm less KL of two-stage, nats, paired by replicate: means with 95% t "
    "intervals, chosen by held-out pairs; hollow and dotted: in hindsight. Above 0 two-stage is "
    "better. Everything that is not on the axis is held; {0} is the offline arm where lines are N."
)
SCATTER_CAPTION = (
    "Complexity of the true reward (verifier) and of its soft-optimal policy (generator) in the "
    "same units, means over the first replicates; dashed: equal. Walsh coefficients: those of r "
    "and of Q that are not 0 to a stated precision; automaton entries: the table of the smallest "
    "automaton that computes it. Bars: 95% t intervals over replicates. One mark a setting."
)
OTHER_CAPTION = (
    "The same fits by other measures, exact by enumeration, with 95% t intervals over replicates. "
    "Ties count half. Best of N: the reference's samples ranked by each arm's own score."
)


@dataclass(frozen=True)
class Group:
    """Pictures under one heading; `more` is folded away."""

    name: str
    heading: str
    sentences: tuple[str, ...]
    picture: Picture | None
    more: Picture | None


def sweep_groups(sweep: SweepRecord) -> tuple[Group, ...]:
    """All that the sweep's data can fill, the overview first."""
    whole = (
        Group("sweep", "The short answer", tuple(findings(sweep)), overview(sweep), None),
        _pairs_group(sweep),
        _ratio_group(sweep),
        _gap_group(sweep.cells),
        _scatter_group(sweep.cells),
        _arms_group(sweep.cells),
        _other_group(sweep.cells),
    )
    return tuple(g for g in whole if g.sentences or g.picture or g.more)


def sweep_pictures(sweep: SweepRecord) -> tuple[Picture, ...]:
    """Every picture of the sweep, those that the report folds away among them."""
    groups = sweep_groups(sweep)
    return tuple(p for group in groups for p in (group.picture, group.more) if p is not None)


def _group(
    name: str,
    heading: str,
    shown: Sequence[Panel],
    more: Sequence[Panel],
    caption: str,
    sentences: Sequence[str] = (),
) -> Group:
    return Group(
        name,
        heading,
        tuple(sentences),
        Picture(name, heading, tuple(shown), caption) if shown else None,
        Picture(f"{name}-more", f"{heading}: more", tuple(more), caption) if more else None,
    )


def _pairs_group(sweep: SweepRecord) -> Group:
    """KL against N at each family's centre, the arms of the two roads."""
    shown = []
    for kind in kinds(sweep.cells):
        rows = centre(sweep.cells, kind)
        if len(rows) > 1 and (here := has(rows, MAIN)):
            title = f"{family_words(kind)}\n{setting_words(rows[0].place, central_words(rows[0]))}"
            shown.append(level_panel(rows, here, title=title, name=slug("sweep-kl", kind)))
    return _group(
        "sweep-pairs", "KL against the number of pairs", shown, (), KL_CAPTION,
        pair_sentences(sweep.cells),
    )  # fmt: skip


def _arms_group(cells: Sequence[Cell]) -> Group:
    """Online DPO and networks, in every setting where they were run."""
    shown = []
    for name, words, arms in (("online", "Online DPO", ONLINE), ("nets", "Networks", NETWORKS)):
        for setting, rows in settings_of(cells).items():
            with_it = [cell for cell in rows if set(cell.arms) & (set(arms) - set(MAIN))]
            if not with_it:
                continue
            place = setting_words(rows[0].place)
            title = f"{words}: {family_words(rows[0].kind)}\n{place}"
            at = slug("sweep-arms", name, *(value for _, value in setting))
            if len(with_it) > 1:
                shown.append(level_panel(with_it, arms, title=title, name=at))
            else:
                words_n = f"{title}, N = {with_it[0].n_pairs}"
                shown.append(arms_panel(with_it[0], arms, title=words_n, name=at))
    return _group("sweep-arms", "Online DPO and small networks", shown, (), KL_CAPTION)


def _ratio_group(sweep: SweepRecord) -> Group:
    ratios = sweep.ratios or ()
    first = targets_panel(sweep.cells, ratios, "sweep-ratio-targets")
    maps = map_panels(sweep.cells, ratios, "sweep-ratio-map")
    main = first_kind(sweep.cells)
    rows = [
        settings_panel(sweep.cells, ratios, kind, "sweep-ratio-map")
        for kind in (main, *(kind for kind in kinds(sweep.cells) if kind != main))
    ]
    whole = [panel for panel in (*maps, *rows) if panel is not None]
    shown = [panel for panel in (first, *whole[:1]) if panel is not None]
    return _group("sweep-efficiency", "How many times the pairs", shown, whole[1:], RATIO_CAPTION)


def _gap_group(cells: Sequence[Cell]) -> Group:
    """One panel an axis from the family with the most settings; the others folded away."""
    main = first_kind(cells)
    shown, more = [], []
    for axis in AXES:
        found = [(track, gap_panel(track)) for track in tracks(cells, axis)]
        drawn = [(track, panel) for track, panel in found if panel is not None]
        first = [panel for track, panel in drawn if track.cells[0].kind == main][:1]
        shown += first
        more += [panel for _, panel in drawn if panel not in first]
    caption = GAP_CAPTION.format(label("offline_all"))
    return _group("sweep-gap", "When the gap opens and closes", shown, more, caption)


def _scatter_group(cells: Sequence[Cell]) -> Group:
    found = (
        complexity_panel(cells, "entries", "sweep-complexity-entries"),
        complexity_panel(cells, "walsh", "sweep-complexity-walsh"),
        ratio_panel(cells, "entries", "sweep-gap-ratio-entries"),
        ratio_panel(cells, "walsh", "sweep-gap-ratio-walsh"),
    )
    panels = [panel for panel in found if panel is not None]
    return _group(
        "sweep-complexity", "Verifier against generator", panels, (), SCATTER_CAPTION
    )  # fmt: skip


def _other_group(cells: Sequence[Cell]) -> Group:
    """Win rate and pair accuracy of the first family, and its best of N; the rest folded away."""
    shown, more = [], []
    for kind in [first_kind(cells), *(k for k in kinds(cells) if k != first_kind(cells))]:
        rows = centre(cells, kind)
        first = kind == first_kind(cells)
        place = setting_words(rows[0].place, central_words(rows[0]))
        arms = has(rows, MAIN)
        for measure in ("win_rate", "val_accuracy", "regret", "val_loss"):
            if len(rows) > 1 and arms:
                name = slug("sweep", measure, kind)
                words = f"{label(measure).capitalize()}\n{family_words(kind)}, {place}"
                panel = level_panel(rows, arms, measure, title=words, name=name)
                (shown if first and measure in ("win_rate", "val_accuracy") else more).append(panel)
        middle = rows[len(rows) // 2]
        words = f"Best of N samples\n{family_words(kind)}, {place}, N = {middle.n_pairs}"
        best = best_of_panel(middle, arms, words, slug("sweep-best-of-n", kind))
        if best is not None:
            (shown if first else more).append(best)
    return _group("sweep-other", "Other measures", shown, more, OTHER_CAPTION)


def sweep_rows(sweep: SweepRecord) -> list[dict[str, str]]:
    """The numbers behind the panels, one row a (setting, N, arm), in words."""
    names = varied(cell.place for cell in sweep.cells) | {"sharpness", "horizon"}
    order = kinds(sweep.cells)
    cells = sorted(sweep.cells, key=lambda c: (order.index(c.kind), str(c.setting), c.n_pairs))
    return [
        {
            "setting": ", ".join(
                filter(None, [family_words(cell.kind), setting_words(cell.place, names)])
            ),
            "n": str(cell.n_pairs),
            "arm": label(arm),
            "kl": _cell(cell, arm, CHOSEN, "kl"),
            "hindsight": _cell(cell, arm, HINDSIGHT, "kl"),
            "win_rate": _cell(cell, arm, CHOSEN, "win_rate"),
            "val_accuracy": _cell(cell, arm, CHOSEN, "val_accuracy"),
            "size": _size(cell, arm),
            "replicates": str(len(cell.fits[arm, CHOSEN].seeds)),
        }
        for cell in cells
        for arm in sorted((arm for arm in cell.arms if (arm, CHOSEN) in cell.fits), key=arm_order)
    ]


def _cell(cell: Cell, arm: str, choice: str, measure: str) -> str:
    mean = level(cell, arm, choice, measure)
    if mean is None:
        return ABSENT
    return number(mean.value) + ("" if mean.half is None else f" ± {number(mean.half)}")


def _size(cell: Cell, arm: str) -> str:
    """Parameters, and the rank of the Jacobian where it is known."""
    fit = cell.fits[arm, CHOSEN]
    return f"{fit.parameters}" + ("" if fit.rank is None else f" (rank {fit.rank})")
