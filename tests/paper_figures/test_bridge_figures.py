"""The bridge table: what is read, what is said, what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paper_figures.bridge import bridge_picture, bridge_sentences, bridge_tables, bridge_verdicts
from paper_figures.bridge_records import load_bridge
from paper_figures.errors import InputError
from paper_figures.records import load_folder
from paper_figures.report import render
from theory.bridge_rows import SCHEMA, TABLE

TYPES = {
    **dict.fromkeys(("cell", "family"), pa.string()), "horizon": pa.int64(), "pairs": pa.int64(),
    **dict.fromkeys(("part", "name", "measure", "branch", "size"), pa.string()),
    "seed": pa.int64(),
    **dict.fromkeys(("value", "low", "high", "predicted", "predicted_error"), pa.float64()),
    "relation": pa.string(), "margin": pa.float64(), "outcome": pa.string(),
    "reason": pa.string(),
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
    rows.append(line(LONG, "theorem_2_2", "other seed: dpo to dpo", "kl", 0.25, seed=1))
    rows.append(line(LONG, "theorem_2_2", "other seed: dpo to dpo", "moved", 0.5, seed=1))
    rows.append(line(SHORT, "likelihood", "global_rm", "val_accuracy", 0.75, seed=0))
    judged = (
        (LONG, "fig3", "win_rate[dpo_2x] - win_rate[dpo]", 0.1, 0.05, "greater", "supported"),
        (LONG, "fig7", "win_rate[dpo_2x] - win_rate[dpo]", 0.1, -0.05, "equal", "inconclusive"),
        (SHORT, "fig9", "val_loss[dpo_rm] - val_loss[local_rm]", 0.1, -0.2, "greater",
         "contradicted"),
    )  # fmt: skip
    rows += [
        line(cell, "verdict", quantity, figure, value, low=value - 0.02, high=value + 0.02,
             predicted=predicted, predicted_error=0.01, relation=relation, outcome=outcome,
             margin=0.02 if relation == "equal" else None, reason="made up")
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
    kl, win, violation, moved, accuracy = bridge_tables(bridge)
    assert moved.lines[0].values == ("0.500",)
    assert (accuracy.columns, accuracy.lines[0].cell) == (("Global RM",), SHORT)
    assert kl.columns == ("SFT", "DPO", "Online DPO (SFT)", "Local RM, as a policy")
    assert kl.lines[0].values == ("1.410", "1.010", "0.710", "0.910")
    assert win.lines[1].values[1] == "0.510"
    assert violation.columns == ("other seed: DPO to DPO",)
    assert [(row.cell, row.values) for row in violation.lines] == [(LONG, ("0.250",))]


def test_sentences_count_signs_and_verdicts(tmp_path: Path) -> None:
    bridge = load_bridge(write(tmp_path, made_up()))
    first, long, short = bridge_sentences(bridge)
    assert first.startswith("All cells: 1 of 3 on the predicted value's side of 0; ")
    assert (
        "KL to the optimum 1.010 nats offline (DPO) and 0.710 online (from SFT), a difference of "
        in long
    )
    assert "a difference of +0.300; 1 supported, 1 inconclusive." in long
    assert short.endswith("1 contradicted.")
    found = bridge_verdicts(bridge)
    assert [row.figure for row in found] == ["Fig. 3", "Fig. 7", "Fig. 9"]
    assert found[1].quantity.endswith("= 0 within 0.02")


def test_the_picture_and_the_report(tmp_path: Path) -> None:
    write(tmp_path, made_up())
    folder = load_folder(tmp_path)
    assert folder.bridge is not None
    picture = bridge_picture(folder.bridge)
    assert picture is not None
    names = [panel.name for panel in picture.panels]
    assert names == [f"bridge-{LONG}", f"bridge-{SHORT}", "bridge-points", "bridge-losses"]
    page = render(folder)
    assert '<section id="bridge">' in page
    assert "<summary>3 verdicts, cell by cell</summary>" in page


def test_a_wrong_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bridge\.parquet: row 0: part 'guess' is none of"):
        load_bridge(write(tmp_path, [line(LONG, "guess", "dpo", "kl", 1.0)]))
    with pytest.raises(InputError, match="row 0: column 'value' must be a finite number, got nan"):
        load_bridge(write(tmp_path, [line(LONG, "policy", "dpo", "kl", float("nan"))]))
    pq.write_table(pa.table({"cell": ["a"]}), tmp_path / "bridge.parquet")
    with pytest.raises(InputError, match="column 'part' is missing"):
        load_bridge(tmp_path / "bridge.parquet")
