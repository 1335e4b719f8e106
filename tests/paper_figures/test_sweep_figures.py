"""The sweep's statistics against hand computation, its axes, its panels and its sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from paper_figures.overview import overview
from paper_figures.style import Panel, label
from paper_figures.sweep import sweep_groups, sweep_pictures, sweep_rows
from paper_figures.sweep_axes import AXES, in_order, tracks
from paper_figures.sweep_findings import findings
from paper_figures.sweep_panels import gap_panel, level_panel
from paper_figures.sweep_records import HINDSIGHT, SweepRecord, load_sweep
from paper_figures.sweep_scatter import common_n, complexity_panel, ratio_panel
from paper_figures.sweep_stats import centre, gap, level, mean_of, spread_out
from paper_figures.sweep_words import setting_words, varied

ARMS = {"two_stage": 0.2, "offline_all": 0.8, "offline_matched": 0.2}
BY_NAME = {axis.name: axis for axis in AXES}
Cells = Callable[..., SweepRecord]


@pytest.fixture
def sweep_of(tmp_path: Path, sweep_tools: SimpleNamespace) -> Cells:
    """A sweep of the given cells: (arms, changes of the place) or changes alone."""

    def made(*places: dict[str, Any], ratios: Any = None) -> SweepRecord:
        cells = [
            sweep_tools.cell(place.pop("arms", ARMS), place.pop("seeds", (0, 1, 2, 3)), **place)
            for place in (dict(given) for given in places)
        ]
        return load_sweep(sweep_tools.folder(tmp_path / "sweep", cells, ratios))

    return made


def drawn(panel: Panel) -> Axes:
    """The panel drawn on an empty figure."""
    ax = Figure(figsize=(3.7, panel.height)).add_subplot()
    panel.draw(ax)
    return ax


def bars(panel: Panel) -> list[str]:
    """The names of the lines with intervals, in the order of the legend."""
    legend = drawn(panel).get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_mean_of_by_hand() -> None:
    mean = mean_of(np.array([1.0, 2.0, 6.0]))
    assert mean.value == pytest.approx(3.0)
    assert mean.half == pytest.approx(4.30265273 * np.sqrt(7.0) / np.sqrt(3.0))
    one = mean_of(np.array([5.0]))
    assert (one.half, one.low, one.high) == (None, None, None)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12), st.floats(-10, 10), st.floats(0.1, 9))
def test_mean_of_moves_and_scales_with_its_data(
    values: list[float], shift: float, scale: float
) -> None:
    plain, moved = mean_of(np.array(values)), mean_of(scale * np.array(values) + shift)
    assert plain.half is not None
    assert moved.half is not None
    assert moved.value == pytest.approx(scale * plain.value + shift, abs=1e-9)
    assert moved.half == pytest.approx(scale * plain.half, abs=1e-7)


def test_the_gap_is_paired_by_replicate(sweep_of: Cells) -> None:
    (cell,) = sweep_of({"settings": {"bits": 8, "degree": 2, "horizon": 8, "sharpness": 2.0}}).cells
    fit = cell.fits["offline_all", "chosen"]
    first = cell.fits["two_stage", "chosen"]
    first.measures["kl"][:] = [0.1, 0.2, 0.3, 0.4]
    fit.measures["kl"][:] = [0.2, 0.2, 0.7, 0.9]
    between = gap(cell, "offline_all")
    assert between is not None
    differences = np.array([0.1, 0.0, 0.4, 0.5])
    half = stats.t.ppf(0.975, 3) * np.std(differences, ddof=1) / 2
    assert between.value == pytest.approx(0.25)
    assert between.half == pytest.approx(half)
    fit.seeds[:] = [2, 3, 4, 5]  # two replicates are shared
    shared = gap(cell, "offline_all")
    assert shared is not None
    assert shared.n == 2
    assert shared.value == pytest.approx(np.mean([0.2 - 0.3, 0.2 - 0.4]))


def test_no_gap_without_both_arms(sweep_of: Cells) -> None:
    (cell,) = sweep_of({"arms": {"two_stage": 0.1}}).cells
    assert gap(cell, "offline_all") is None
    assert gap(cell, "two_stage") is None
    assert level(cell, "offline_all") is None
    assert level(cell, "two_stage", HINDSIGHT) is not None


def test_one_replicate_has_no_interval_and_no_verdict(sweep_of: Cells) -> None:
    sweep = sweep_of(*({"seeds": (0,), "n_pairs": n} for n in (64, 256)))
    between = gap(sweep.cells[0], "offline_all")
    assert between is not None
    assert between.half is None
    text = " ".join(findings(sweep))
    assert "a gap of +0.600 " in text
    assert "beyond the 95%" not in text
    assert all(panel.alt for picture in sweep_pictures(sweep) for panel in picture.panels)
    assert sweep_rows(sweep)[0]["kl"] == "0.200"


def walsh(sweep_tools: SimpleNamespace, **changes: Any) -> dict[str, Any]:
    """The Walsh settings with some changed."""
    return {**sweep_tools.walsh, **changes}


def test_the_axis_of_complexity_holds_everything_else(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    sweep = sweep_of(
        {},
        {"settings": walsh(sweep_tools, degree=4), "arms": ARMS | {"offline_all": 0.5}},
        {"settings": walsh(sweep_tools, degree=1, sharpness=1.0)},  # differs twice
        {"settings": walsh(sweep_tools, degree=8), "noise": 0.1},
    )
    (track,) = tracks(sweep.cells, BY_NAME["complexity"])
    assert track.places() == [2, 4]
    panel = gap_panel(track)
    assert panel is not None
    assert "offline, all policies, 2: +0.600 ± 0.000; offline, all policies, 4: +0.300" in panel.alt
    assert "degree k of the reward" in panel.alt
    assert bars(panel) == [label("offline_all"), label("offline_matched")]


def test_the_two_readings_of_a_shorter_horizon(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    larger = {"settings": walsh(sweep_tools, horizon=4)}
    sweep = sweep_of(
        {},
        larger,
        larger | {"reward_class": "full"},
        {"reward_class": "full"},
        {"settings": walsh(sweep_tools, bits=4, horizon=4), "arms": ARMS | {"offline_all": 0.3}},
    )
    (fewer,) = (t for t in tracks(sweep.cells, BY_NAME["fewer-tokens"]) if t.length > 1)
    (cut,) = tracks(sweep.cells, BY_NAME["larger-tokens"])
    assert {cell.settings["bits"] for cell in fewer.cells} == {4, 8}
    assert {cell.settings["bits"] for cell in cut.cells} == {8}
    panels = gap_panel(fewer), gap_panel(cut)
    assert panels[0] is not None
    assert panels[1] is not None
    assert ", 4: +0.100" in panels[0].alt
    assert bars(panels[1]) == ["verifier sees bits", "verifier sees tokens as ids"]


def test_with_several_n_each_is_a_line_and_the_matched_class_is_one(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    sweep = sweep_of(
        *(
            {"settings": walsh(sweep_tools, sharpness=s), "n_pairs": n}
            for s in (1.0, 2.0)
            for n in (16, 64, 256)
        )
    )
    (track,) = tracks(sweep.cells, BY_NAME["sharpness"])
    panel = gap_panel(track)
    assert panel is not None
    assert bars(panel) == ["N = 16", "N = 64", "N = 256", "matched, N = 64"]


@pytest.mark.parametrize(
    ("name", "places", "words"),
    [
        ("coverage", ({"reference_share": 0.5, "coverage": c} for c in ("narrow", "uniform")),
         "uniform: +0.600 ± 0.000; offline, all policies, narrow: +0.600"),
        ("noise", ({"noise": n} for n in (0.0, 0.2)), "0.2: +0.600"),
        ("beta", ({"beta": b} for b in (0.5, 2.0)), "0.5: +0.600"),
        ("class-size", ({"reward_class": c} for c in ("true", "full")), "255: +0.600"),
    ],
)  # fmt: skip
def test_the_other_axes(sweep_of: Cells, name: str, places: Any, words: str) -> None:
    (track,) = tracks(sweep_of(*places).cells, BY_NAME[name])
    panel = gap_panel(track)
    assert panel is not None
    assert words in panel.alt
    drawn(panel)


def test_a_reference_that_does_not_decide_the_pairs_is_no_axis(sweep_of: Cells) -> None:
    sweep = sweep_of({}, {"reference_share": 0.5})
    assert tracks(sweep.cells, BY_NAME["reference"]) == []


def test_the_centre_is_where_the_most_settings_differ_once(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    sweep = sweep_of(
        *({"settings": walsh(sweep_tools, degree=1), "n_pairs": n} for n in (64, 256)),
        *({"n_pairs": n} for n in (64, 256)),
        {"noise": 0.1},
        {"settings": walsh(sweep_tools, sharpness=1.0)},
    )
    assert [(c.settings["degree"], c.n_pairs) for c in centre(sweep.cells, "walsh")] == [
        (2, 64), (2, 256),
    ]  # fmt: skip


def test_a_level_panel_draws_what_was_run_and_its_hindsight_hollow(sweep_of: Cells) -> None:
    sweep = sweep_of({"n_pairs": 64}, {"n_pairs": 256, "arms": {"two_stage": 0.1}})
    panel = level_panel(sweep.cells, list(ARMS), title="t", name="n")
    assert "two-stage (reward, then soft RL) at N = 256: 0.100" in panel.alt
    assert "offline, all policies at N = 256" not in panel.alt
    ax = drawn(panel)
    hollow = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    values = [list(line.get_ydata()) for line in hollow]  # pyright: ignore
    assert values[0] == pytest.approx([0.15, 0.05])  # hindsight is 0.05 better
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_verifier_against_generator(sweep_of: Cells, sweep_tools: SimpleNamespace) -> None:
    sweep = sweep_of({}, {"n_pairs": 64}, {"family": "coverage", "settings": sweep_tools.coverage})
    entries = complexity_panel(sweep.cells, "entries", "n")
    coefficients = complexity_panel(sweep.cells, "walsh", "n")
    assert entries is not None
    assert coefficients is not None
    assert "coverage of salient words: 20.0 and 80.0" in entries.alt
    assert "coverage" not in coefficients.alt.split("generator.", 1)[1]
    assert "Walsh polynomial: 36.0 and 144.0" in coefficients.alt
    assert bars(entries) == ["Walsh", "salient words"]
    assert common_n(sweep.cells) == 256
    assert ratio_panel(sweep.cells, "entries", "n") is None  # one ratio is no line
    sweep.cells[0].scales["generator_entries"] = 200.0
    between = ratio_panel(sweep.cells, "entries", "n")
    assert between is not None
    assert "Walsh polynomial, ratio 10.00: +0.600" in between.alt
    sweep.cells[0].scales["generator_walsh"] = None
    assert complexity_panel(sweep.cells[:1], "walsh", "n") is None


def test_the_whole_sweep_has_panels_of_their_own_names(shared_demo: Path) -> None:
    sweep = load_sweep(shared_demo / "sweep")
    groups = sweep_groups(sweep)
    assert [group.name for group in groups] == [
        "sweep", "sweep-pairs", "sweep-efficiency", "sweep-gap", "sweep-complexity", "sweep-other",
    ]  # fmt: skip
    names = [panel.name for picture in sweep_pictures(sweep) for panel in picture.panels]
    assert len(set(names)) == len(names)
    first = overview(sweep)
    assert first is not None
    assert len(first.panels) == 4
    assert "95% t intervals" in first.caption
    rows = sweep_rows(sweep)
    assert len(rows) == 8 * 3
    assert rows[0]["setting"].startswith("Walsh polynomial, k = 2, s = 2, H = 4")


def test_sentences_say_how_much_and_where_not(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    lookup = {"bits": 8, "horizon": 8, "sharpness": 2.0}
    sweep = sweep_of(
        {},
        {"settings": walsh(sweep_tools, degree=4)},
        {"family": "lookup", "settings": lookup, "arms": ARMS | {"offline_all": 0.1}},
        ratios=[
            sweep_tools.ratio(5.0),
            sweep_tools.ratio(
                None, "neither arm reaches it", family="lookup", settings=lookup, complexity=8
            ),
        ],
    )
    text = " ".join(findings(sweep))
    assert "3 cells in 2 families, 4 replicates a cell, 108 rows." in text
    assert "0.200 nats by two-stage and 0.800" in text
    assert "a gap of +0.600" in text
    assert "Walsh polynomial 5 [3.3, 7.5] (KL 0.25)" in text
    assert "No ratio within the N that were run: lookup table." in text
    assert "two-stage is better beyond the 95% interval in 2, offline learning over all" in text
    assert "in 1. Not better in (lowest gap in nats): lookup table, N = 256 (\u22120.100)." in text


def test_a_sweep_without_offline_arms_still_has_levels(sweep_of: Cells) -> None:
    sweep = sweep_of(*({"arms": {"two_stage": 0.1}, "n_pairs": n} for n in (64, 256)))
    assert [panel.name for panel in sweep_pictures(sweep)[0].panels] == ["sweep-overview-kl"]
    assert "ratios of data efficiency are written when" in " ".join(findings(sweep))


def test_words() -> None:
    place = {"family": "walsh", "bits": 8, "degree": 2, "noise": 0.0, "beta": 0.5, "odd_one": True}
    assert setting_words(place) == "k = 2, bits = 8, beta = 0.5, odd one = True"
    assert setting_words(place, only=("degree",)) == "k = 2"
    assert varied([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}]) == {"b"}
    assert in_order(["narrow", "uniform", "on_policy"]) == ["uniform", "on_policy", "narrow"]
    assert in_order([8.0, 2.0]) == [2.0, 8.0]
    assert spread_out([64, 16, 1024, 256, 4096], 3) == [16, 256, 4096]


def test_online_and_network_arms_are_shown_where_they_were_run(sweep_of: Cells) -> None:
    sweep = sweep_of(
        *({"n_pairs": n, "arms": ARMS | {"online_dpo_sft": 0.4}} for n in (64, 256)),
        {"noise": 0.1, "arms": {"two_stage": 0.2, "mlp_offline": 0.5}},
    )
    (group,) = (group for group in sweep_groups(sweep) if group.name == "sweep-arms")
    assert group.picture is not None
    online, nets = group.picture.panels
    assert bars(online) == [label(arm) for arm in ("two_stage", "offline_all", "online_dpo_sft")]
    assert "MLP: offline: 0.500" in nets.alt
    assert [text.get_text() for text in drawn(nets).get_yticklabels()][-1] == "MLP: offline"


def test_lines_of_n_are_those_with_the_whole_axis(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    sweep = sweep_of(
        *({"settings": walsh(sweep_tools, sharpness=s), "n_pairs": n}
          for s, ns in ((1.0, (64, 128, 256)), (2.0, (64, 128, 256)), (4.0, (64, 256)))
          for n in ns)
    )  # fmt: skip
    (track,) = tracks(sweep.cells, BY_NAME["sharpness"])
    panel = gap_panel(track)
    assert panel is not None
    assert bars(panel)[:2] == ["N = 64", "N = 256"]


def test_a_shorter_horizon_without_bits_is_one_of_fewer_tokens_alone(
    sweep_of: Cells, sweep_tools: SimpleNamespace
) -> None:
    sweep = sweep_of(
        *(
            {"family": "coverage", "settings": {**sweep_tools.coverage, "horizon": h}}
            for h in (2, 3)
        )
    )
    assert [t.places() for t in tracks(sweep.cells, BY_NAME["fewer-tokens"])] == [[2.0, 3.0]]
    assert tracks(sweep.cells, BY_NAME["larger-tokens"]) == []


def test_a_gap_whose_interval_contains_0_is_not_better(sweep_of: Cells) -> None:
    sweep = sweep_of({})
    first, offline = (
        sweep.cells[0].fits[arm, "chosen"].measures["kl"] for arm in ("two_stage", "offline_all")
    )
    offline[:] = first + np.array([-0.1, 0.3, -0.1, 0.3])
    text = " ".join(findings(sweep))
    assert "in 0, offline learning over all policies in 0. Not better in" in text
    assert "Walsh, N = 256 (+0.100)." in text
