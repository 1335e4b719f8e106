"""Ratios of pairs: words, dots with intervals, bounds, and the map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from paper_figures.efficiency import (
    at_centres,
    best_target,
    dot,
    family_panel,
    interval_words,
    ratio_axis,
    ratio_words,
    select,
    stated_targets,
    targets_panel,
)
from paper_figures.efficiency_map import (
    MAP_NONE,
    map_colour,
    map_panels,
    map_words,
    settings_panel,
)
from paper_figures.style import Panel
from paper_figures.sweep_records import Ratio, SweepRecord, load_ratios, load_sweep
from paper_figures.sweep_words import apart

ARMS = {"two_stage": 0.2, "offline_all": 0.8}
NEITHER = "neither arm reaches it"
Rows = Callable[..., SweepRecord]


@pytest.fixture
def ratios_of(tmp_path: Path, sweep_tools: SimpleNamespace) -> Rows:
    """A sweep with a cell for each setting of its ratios; a ratio: (value, bound, changes)."""

    def made(*rows: tuple[float | None, str, dict[str, Any]]) -> SweepRecord:
        kept = {}
        for _, _, changes in rows:
            settings = changes.get("settings", sweep_tools.walsh)
            family = changes.get("family", "walsh")
            kept[str((family, settings))] = sweep_tools.cell(ARMS, family=family, settings=settings)
        table = [sweep_tools.ratio(value, bound, **dict(changes)) for value, bound, changes in rows]
        return load_sweep(sweep_tools.folder(tmp_path / "sweep", list(kept.values()), table))

    return made


def drawn(panel: Panel) -> Axes:
    """The panel drawn on an empty figure."""
    ax = Figure(figsize=(3.7, panel.height)).add_subplot()
    panel.draw(ax)
    return ax


def one(sweep_tools: SimpleNamespace, tmp_path: Path, value: float | None, bound: str) -> Ratio:
    """A ratio as it is read back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / f"{value}{bound}.parquet"
    pq.write_table(pa.Table.from_pylist([sweep_tools.ratio(value, bound)]), path)
    return load_ratios(path)[0]


@pytest.mark.parametrize(
    ("value", "bound", "words", "tile"),
    [
        (5.0, "none", "5 [3.3, 7.5]", "5 [3.3, 7.5]"),
        (16.0, "ratio is at least", "≥ 16", "≥ 16"),
        (0.5, "ratio is at most", "≤ 0.5", "≤ 0.5"),
        (None, NEITHER, "not reached", "—"),
    ],
)
def test_words_of_a_ratio(
    tmp_path: Path,
    sweep_tools: SimpleNamespace,
    value: float | None,
    bound: str,
    words: str,
    tile: str,
) -> None:
    row = one(sweep_tools, tmp_path, value, bound)
    assert (ratio_words(row), map_words(row)) == (words, tile)


def test_an_interval_that_runs_out_of_the_curves_is_open(ratios_of: Rows) -> None:
    sweep = ratios_of((5.0, "none", {"high": None}), (5.0, "none", {"low": None}))
    assert sweep.ratios is not None
    assert [interval_words(row) for row in sweep.ratios] == ["[3.3, …)", "(…, 7.5]"]
    ax = Figure().add_subplot()
    ratio_axis(ax, sweep.ratios)
    dot(ax, 0.0, sweep.ratios[0], ("#000000", "o"))
    line = next(line for line in ax.get_lines() if line.get_marker() == ">")
    assert line.get_xdata()[0] == pytest.approx(ax.get_xlim()[1])  # pyright: ignore


def test_a_bound_is_an_arrow_to_its_own_side(tmp_path: Path, sweep_tools: SimpleNamespace) -> None:
    for bound, side in (("ratio is at least", 1), ("ratio is at most", -1), ("none", 0)):
        row = one(sweep_tools, tmp_path, 2.0, bound)
        ax = Figure().add_subplot()
        ratio_axis(ax, [row])
        dot(ax, 0.0, row, ("#000000", "o"))
        ends = [text.xy[0] for text in ax.texts if hasattr(text, "xy")]  # pyright: ignore
        assert [(end > 2.0) - (end < 2.0) for end in ends] == ([side] if side else [])


def test_the_colour_says_who_needs_more(tmp_path: Path, sweep_tools: SimpleNamespace) -> None:
    few, even, many = (map_colour(one(sweep_tools, tmp_path, v, "none")) for v in (0.25, 1.0, 4.0))
    assert few[2] > few[0]  # blue
    assert many[0] > many[2]  # orange
    assert even[0] == pytest.approx(even[2], abs=0.02)  # neither
    assert map_colour(one(sweep_tools, tmp_path, None, NEITHER)) == MAP_NONE
    full = map_colour(one(sweep_tools, tmp_path, 8.0, "none"))
    assert map_colour(one(sweep_tools, tmp_path, 800.0, "none")) == full


def test_the_hardest_target_with_an_interval_comes_first(ratios_of: Rows) -> None:
    sweep = ratios_of(
        (5.0, "none", {"target_kl": 0.5}),
        (6.0, "none", {"target_kl": 0.25}),
        (7.0, "none", {"target_kl": 0.1, "high": None}),
        (9.0, "ratio is at least", {"target_kl": 0.05}),
    )
    rows = sweep.ratios or ()
    best = best_target(rows)
    assert best is not None
    assert best.target_kl == 0.25
    bounded = best_target(rows[3:])
    assert bounded is not None
    assert bounded.bound == "ratio is at least"
    assert best_target([]) is None


def test_stated_targets_are_those_that_most_settings_have(
    ratios_of: Rows, sweep_tools: SimpleNamespace
) -> None:
    other = {"settings": {**sweep_tools.walsh, "degree": 4}}
    sweep = ratios_of(
        (5.0, "none", {}), (5.0, "none", other), (3.0, "none", {"target_kl": 0.137})
    )  # fmt: skip
    assert stated_targets(sweep.ratios or ()) == {0.25}
    assert stated_targets((sweep.ratios or ())[2:]) == {0.137}
    assert stated_targets(()) == set()


def test_families_with_a_bound_and_without_any_ratio(
    ratios_of: Rows, sweep_tools: SimpleNamespace
) -> None:
    covered = {"family": "coverage", "settings": sweep_tools.coverage}
    lookup = {"family": "lookup", "settings": {"bits": 8, "horizon": 8, "sharpness": 2.0}}
    sweep = ratios_of(
        (5.0, "none", {}),
        (4.0, "none", {"choice": "hindsight"}),
        (1.1, "none", {"offline_arm": "offline_matched"}),
        (16.0, "ratio is at least", covered),
        (None, NEITHER, lookup),
    )
    rows = sweep.ratios or ()
    panel = family_panel(sweep.cells, rows, "n")
    assert panel is not None
    assert (
        "Walsh, KL 0.25 nats: offline, all policies 5 [3.3, 7.5], "
        "offline, policies matched in capacity 1.1 [0.73, 1.7]"
    ) in panel.alt
    assert "salient words, KL 0.25 nats: offline, all policies ≥ 16" in panel.alt
    assert "lookup table: not reached" in panel.alt
    ax = drawn(panel)
    assert "not reached" in {text.get_text() for text in ax.findobj(Text)}
    low, high = ax.get_xlim()
    assert low < 0.73
    assert high > 16.0
    targets = targets_panel(sweep.cells, rows, "n")
    assert targets is not None
    assert "lookup table, KL 0.25: not reached" in targets.alt
    drawn(targets)
    assert [row.kind for row in at_centres(sweep.cells, select(rows))] == [
        "walsh", "coverage", "lookup",
    ]  # fmt: skip


def test_nothing_reached_is_no_panel(ratios_of: Rows) -> None:
    sweep = ratios_of((None, NEITHER, {}))
    rows = sweep.ratios or ()
    assert family_panel(sweep.cells, rows, "n") is None
    assert targets_panel(sweep.cells, rows, "n") is None
    assert family_panel(sweep.cells, (), "n") is None
    assert targets_panel(sweep.cells, (), "n") is None


def test_a_map_over_two_axes_where_most_of_it_was_run(
    ratios_of: Rows, sweep_tools: SimpleNamespace
) -> None:
    def at(degree: int, sharpness: float) -> dict[str, Any]:
        return {"settings": {**sweep_tools.walsh, "degree": degree, "sharpness": sharpness}}

    rows = [
        (2.0 * k, "none", at(k, s)) for k in (2, 4) for s in (1.0, 2.0) if (k, s) != (4, 2.0)
    ]  # fmt: skip
    sweep = ratios_of(*rows, (None, NEITHER, at(4, 2.0)))
    (panel,) = map_panels(sweep.cells, sweep.ratios or (), "n")
    assert "complexity 4, sharpness 1: 8 [5.3, 12]" in panel.alt
    assert "complexity 4, sharpness 2: not reached" in panel.alt
    ax = drawn(panel)
    assert len(ax.patches) == 4
    top = [text.get_text() for text in ax.get_yticklabels()]
    assert (top, ax.get_ylim()[0] > ax.get_ylim()[1]) == (["2", "1"], True)  # 2 stands on top


def test_settings_as_rows_where_one_axis_varies_at_a_time(
    ratios_of: Rows, sweep_tools: SimpleNamespace
) -> None:
    sweep = ratios_of(
        (5.0, "none", {}),
        (2.0, "none", {"settings": {**sweep_tools.walsh, "degree": 4}}),
        (7.0, "none", {"settings": {**sweep_tools.walsh, "sharpness": 1.0}}),
    )
    rows = sweep.ratios or ()
    assert map_panels(sweep.cells, rows, "n") == []
    panel = settings_panel(sweep.cells, rows, "walsh", "n")
    assert panel is not None
    assert "k = 2, s = 2, H = 8, KL 0.25: 5 [3.3, 7.5]; k = 4, KL 0.25: 2 [1.3, 3]" in panel.alt
    labels = [text.get_text() for text in drawn(panel).get_yticklabels()]
    assert labels == ["k = 2, s = 2, H = 8", "k = 4", "s = 1"]
    assert settings_panel(sweep.cells, rows[:1], "walsh", "n") is None


def test_what_sets_a_setting_apart() -> None:
    here = {"degree": 2, "noise": 0.1, "coverage": "uniform"}
    assert apart(here, here) == ""
    assert apart(here | {"degree": 3, "coverage": "narrow"}, here) == "k = 3, pairs = narrow"
    assert apart(here | {"noise": 0.0}, here) == "usual noise"
