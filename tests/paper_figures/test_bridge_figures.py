"""The bridge table: what is read, what is said, what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from paper_figures.bridge import bridge_picture, bridge_sentences, bridge_tables, bridge_verdicts
from paper_figures.bridge_panels import signs_panel, verdict_map
from paper_figures.bridge_records import load_bridge
from paper_figures.errors import InputError
from paper_figures.prose import ABSENT
from paper_figures.records import load_folder
from paper_figures.report import render
from paper_figures.style import panel_svg
from theory.bridge_rows import SCHEMA, TABLE

TYPES = {
    **dict.fromkeys(("cell", "family"), pa.string()), "horizon": pa.int64(), "pairs": pa.int64(),
    **dict.fromkeys(("part", "name", "measure", "branch", "size"), pa.string()),
    "seed": pa.int64(),
    **dict.fromkeys(("value", "low", "high", "predicted", "predicted_error"), pa.float64()),
    "relation": pa.string(), "margin": pa.float64(), "outcome": pa.string(),
    **dict.fromkeys(("reason", "unit", "needs"), pa.string()),
}  # fmt: skip
KL = {"sft": 1.4, "dpo": 1.0, "online_dpo_sft": 0.7, "local_rm_policy": 0.9}
LONG, SHORT = "walsh-h6-n256", "lookup-h2-n4096"


def line(cell: str, part: str, name: str, measure: str, value: float, **more: Any) -> dict:
    """One row; what is not named is null, or "" for branch and size."""
    start = {**dict.fromkeys(TYPES), "branch": "", "size": "", "family": "walsh"}
    found = {"cell": cell, "part": part, "name": name, "measure": measure, "value": value}
    return {**start, **found, **more}


def made_up() -> list[dict]:
    """Two cells, three seeds, a verdict of each kind."""
    rows = [
        line(cell, "policy", name, measure, factor * value + 0.01 * seed, seed=seed)
        for cell, factor in ((LONG, 1.0), (SHORT, 0.5))
        for name, value in KL.items()
        for measure in ("kl_to_optimum", "win_rate")
        for seed in range(3)
    ]
    rows.append(line(LONG, "policy", "dpo", "kl_to_optimum", 99.0, seed=0, branch="narrow"))
    for value in (0.25, 0.5):
        rows.append(line(LONG, "theorem_2_2", "other seed: dpo to dpo", "kl", value, seed=1))
    for road in ("other seed: dpo to dpo", "other class: local_rm to dpo"):
        rows.append(line(LONG, "theorem_2_2", road, "moved", 0.5, seed=1))
    rows.append(line(SHORT, "likelihood", "global_rm", "val_accuracy", 0.75, seed=0))
    rows.append(line(SHORT, "likelihood", "global_rm", "best_accuracy", 0.875, seed=0))
    fit = {"prompts": 16.0, "prompts_with_maximiser": 4.0, "least_loss": 0.125}
    rows += [line(LONG, "likelihood", "training pairs", name, fit[name], seed=0) for name in fit]
    judged = (
        (LONG, "fig3", "win_rate[dpo_2x] - win_rate[dpo]", 0.1, 0.05, "greater", "supported"),
        (LONG, "fig7", "win_rate[dpo_2x] - win_rate[dpo]", 0.1, -0.05, "equal", "inconclusive"),
        (SHORT, "fig9", "val_loss[dpo_rm] - val_loss[local_rm]", 0.1, -0.2, "greater",
         "contradicted"),
    )  # fmt: skip
    rows += [
        line(cell, "verdict", quantity, figure, value, low=value - 0.02, high=value + 0.02,
             predicted=predicted, predicted_error=0.01, relation=relation, outcome=outcome,
             margin=0.02 if relation == "equal" else None, reason="made up",
             unit="nats per pair" if "loss" in quantity else "points",
             needs="5 seeds" if outcome == "inconclusive" else None)
        for cell, figure, quantity, predicted, value, relation, outcome in judged
    ]  # fmt: skip
    return rows


def write(folder: Path, rows: list[dict]) -> Path:
    """A bridge.parquet."""
    path = folder / TABLE
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([*TYPES.items()])), path)
    return path


def test_the_columns_are_those_that_the_bridge_writes() -> None:
    assert {name: str(kind) for name, kind in TYPES.items()} == {
        name: kind.replace("float64", "double") for name, kind in SCHEMA.items()
    }


def test_tables_hold_means_of_the_main_branch(tmp_path: Path) -> None:
    bridge = load_bridge(write(tmp_path, made_up()))
    assert bridge.cells == (LONG, SHORT)
    counts, kl, win, violation, moved, accuracy, reached = bridge_tables(bridge)
    assert counts.columns == ("contradicted", "supported", "inconclusive", "all")
    assert [(row.cell, row.values) for row in counts.lines] == [
        (LONG, ("0", "1", "1", "2")), (SHORT, ("1", "0", "0", "1")),
        ("all cells", ("1", "1", "1", "3")),
    ]  # fmt: skip
    assert (moved.columns, moved.lines[0].values) == (("DPO",), ("0.500",))
    assert (accuracy.columns, accuracy.lines[0].cell) == (("Global RM", "Best possible"), SHORT)
    assert accuracy.lines[0].values == ("0.750", "0.875")
    assert kl.columns == ("SFT", "DPO", "Online DPO (SFT)", "Local RM, as a policy")
    means = tuple(value.split("<")[0] for value in kl.lines[0].values)
    assert means == ("1.410", "1.010", "0.710", "0.910")
    assert win.lines[1].values[1].startswith("0.510<small>")
    assert violation.columns == ("other seed:<br>DPO to DPO",)
    assert [(row.cell, row.values) for row in violation.lines] == [
        (LONG, ("0.375<small>up to 0.500</small>",))
    ]
    assert [row.values for row in reached.lines] == [("4 of 16", "0.125", ABSENT, ABSENT)]


def test_a_mean_has_its_t_interval_where_there_are_seeds(tmp_path: Path) -> None:
    """Seeds at 1.00, 1.01, 1.02: the half width is t(0.975, 2) 0.01 / sqrt(3) = 0.0248."""
    _, kl, *_ = bridge_tables(load_bridge(write(tmp_path, made_up())))
    assert kl.lines[0].values[1] == "1.010<small>[0.985, 1.035]</small>"
    alone = [line(LONG, "policy", "sft", "kl_to_optimum", 0.5)]
    (kl,) = bridge_tables(load_bridge(write(tmp_path, alone)))
    assert kl.lines[0].values == ("0.500",)


def test_sentences_count_signs_and_verdicts(tmp_path: Path) -> None:
    bridge = load_bridge(write(tmp_path, made_up()))
    first, known, against, long, short = bridge_sentences(bridge)
    assert first.startswith("All cells: 3 predictions: 1 supported, 1 inconclusive, 1 contradicted")
    assert first.endswith("; 1 of 3 measured on the forecast's side of 0.")
    assert "Of the 1 contradicted, the toy forecast had foreseen 0" in known
    assert 'data-outcome="contradicted"' in against
    assert (
        f"{SHORT}, Fig. 9, validation loss: DPO RM \N{MINUS SIGN} Local RM &gt; 0: measured "
        "\N{MINUS SIGN}0.200 [\N{MINUS SIGN}0.220, \N{MINUS SIGN}0.180] nats per pair; not "
        "foreseen by the toy forecast, +0.100 \N{PLUS-MINUS SIGN} 0.010."
    ) in against
    assert (
        "KL to the optimum 1.010 nats offline (DPO) and 0.710 online (from SFT), a difference of "
        in long
    )
    gap = "a difference of +0.300 [+0.300, +0.300] nats; 1 supported, 1 inconclusive."
    assert gap in long  # paired by seed: the seeds differ, their differences do not
    assert short.endswith("1 contradicted.")
    found = bridge_verdicts(bridge)
    assert [row.figure for row in found] == ["Fig. 3", "Fig. 7", "Fig. 9"]
    assert found[1].quantity.endswith("= 0 within 0.02")
    assert found[1].predicted == "+0.100 \N{PLUS-MINUS SIGN} 0.010"
    assert found[1].measured.endswith("<small>made up (would decide: 5 seeds)</small>")
    assert found[0].measured.endswith("points<small>made up</small>")


@pytest.mark.parametrize(
    ("predicted", "error", "relation", "margin", "words"),
    [
        (-0.1, 0.01, "greater", None, "; foreseen by"),
        (-0.1, 0.06, "greater", None, "; not foreseen by"),
        (0.1, 0.01, "greater", None, "; not foreseen by"),
        (None, None, "greater", None, "; not foreseen by"),
        (-0.1, 0.01, "equal", 0.05, "; foreseen by"),
        (-0.1, 0.01, "equal", 0.09, "; not foreseen by"),
    ],
)
def test_foreseen_is_what_the_forecast_surely_says(
    predicted, error, relation, margin, words: str, tmp_path: Path
) -> None:
    row = line(
        LONG, "verdict", "x[a] - x[b]", "fig3", -0.2, low=-0.3, high=-0.1, predicted=predicted,
        predicted_error=error, relation=relation, margin=margin, outcome="contradicted",
    )  # fmt: skip
    assert words in "".join(bridge_sentences(load_bridge(write(tmp_path, [row]))))


def test_nothing_contradicted_is_not_talked_of(tmp_path: Path) -> None:
    rows = [row for row in made_up() if row["outcome"] != "contradicted"]
    assert "contradicted" not in "".join(bridge_sentences(load_bridge(write(tmp_path, rows))))


def test_a_name_from_the_table_is_no_markup(tmp_path: Path) -> None:
    rows = made_up()
    rows[-1] |= {"name": "<b>x</b>", "reason": "<b>x</b>", "unit": "<b>x</b>"}
    write(tmp_path, rows)
    page = render(load_folder(tmp_path))
    assert "<b>x</b>" not in page
    assert page.count("&lt;b&gt;x&lt;/b&gt;") > 3


def test_what_was_not_measured_is_counted_and_drawn(tmp_path: Path) -> None:
    rows = made_up()
    absent = {"value": None, "low": None, "high": None, "outcome": "not measured"}
    rows.append({**rows[-1], **absent, "name": "val_loss[x] - val_loss[y]"})
    bridge = load_bridge(write(tmp_path, rows))
    counts = bridge_tables(bridge)[0]
    assert counts.columns == ("contradicted", "supported", "inconclusive", "not measured", "all")
    assert counts.lines[-1].values == ("1", "1", "1", "1", "4")
    assert "4 predictions" in bridge_sentences(bridge)[0]
    assert len(bridge_verdicts(bridge)) == 4
    picture = bridge_picture(bridge)
    assert picture is not None
    assert "1 not measured" in picture.panels[0].alt
    assert ">not measured</text>" in panel_svg(picture.panels[0])


def test_the_picture_and_the_report(tmp_path: Path) -> None:
    write(tmp_path, made_up())
    folder = load_folder(tmp_path)
    assert folder.bridge is not None
    picture = bridge_picture(folder.bridge)
    assert picture is not None
    names = [panel.name for panel in picture.panels]
    assert names == ["bridge-verdicts", "bridge-points", "bridge-losses", f"bridge-{LONG}",
                     f"bridge-{SHORT}"]  # fmt: skip
    page = render(folder)
    assert '<section id="bridge">' in page
    assert "<summary>3 verdicts, cell by cell</summary>" in page
    for words in ("points, 0-1", "nats per pair", "KL to the optimum (nats)", "(9)"):
        assert words in page


def test_every_interval_lies_in_the_frame_and_the_contradicted_on_top(tmp_path: Path) -> None:
    rows = made_up()
    rows[-3] |= {"low": -0.9, "high": 1.1}
    bridge = load_bridge(write(tmp_path, rows))
    judged = bridge.verdicts
    ax = Figure().add_subplot()
    signs_panel("x", "x", "points", judged).draw(ax)
    low, high = ax.get_ylim()
    assert low < -0.9
    assert high > 1.1
    drawn = [artist for artist in ax.lines if artist.get_marker() in ("s", "o", "X")]
    assert [artist.get_marker() for artist in drawn] == ["s", "o", "X"]


def test_the_map_has_a_mark_for_every_verdict_in_its_place(tmp_path: Path) -> None:
    bridge = load_bridge(write(tmp_path, made_up()))
    ax = Figure().add_subplot()
    verdict_map(bridge.verdicts).draw(ax)
    marks = {
        (float(artist.get_xdata()[0]), float(artist.get_ydata()[0])): artist.get_marker()
        for artist in ax.lines
    }
    assert marks == {(0.0, 0.0): "o", (0.0, 1.0): "s", (1.0, 2.0): "X"}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [LONG, SHORT]
    claims = [tick.get_text() for tick in ax.get_yticklabels()]
    assert claims[1].endswith("= 0 \N{PLUS-MINUS SIGN} 0.02 (7)")


def test_a_table_without_the_later_columns_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, made_up())
    pq.write_table(pq.read_table(path).drop_columns(["unit", "needs"]), path)
    bridge = load_bridge(path)
    assert {row.unit + row.needs for row in bridge.rows} == {""}
    assert len(bridge_sentences(bridge)) == 5


def test_a_wrong_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bridge\.parquet: row 0: part 'guess' is none of"):
        load_bridge(write(tmp_path, [line(LONG, "guess", "dpo", "kl", 1.0)]))
    with pytest.raises(InputError, match="row 0: column 'value' must be a finite number, got nan"):
        load_bridge(write(tmp_path, [line(LONG, "policy", "dpo", "kl", float("nan"))]))
    pq.write_table(pa.table({"cell": ["a"]}), tmp_path / "bridge.parquet")
    with pytest.raises(InputError, match="column 'part' is missing"):
        load_bridge(tmp_path / "bridge.parquet")
