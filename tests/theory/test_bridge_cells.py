"""The bridge's cells: which there are, what is made for each, what is made again."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from theory.__main__ import main
from theory.bridge import EVERYWHERE, PRESETS, Bridge, Cell, cells, choose, predict, train
from theory.bridge_rows import SCHEMA, TABLE, load_rows, merged, save_rows
from theory.commands.bridge import run_cells
from theory.errors import InputError
from theory.tasks import WalshTask

SMALL = Cell(WalshTask(prompt_bits=1, completion_bits=2), 48, "test")


def test_predictions_of_other_settings_are_made_again(tmp_path: Path, monkeypatch):
    made = []
    monkeypatch.setattr("theory.forecast.forecast", lambda *_: made.append(1) or [])
    bridge = Bridge(tmp_path)
    assert predict(bridge, SMALL, print)
    assert not predict(bridge, SMALL, print)
    assert len(made) == 1
    assert predict(replace(bridge, replicates=3), SMALL, print)
    assert predict(bridge, replace(SMALL, figures=("fig3",)), print)
    other = Cell(replace(SMALL.task, seed=1), SMALL.pairs, SMALL.preset)
    assert predict(bridge, other, print)
    assert len(made) == 4


def dying(code: int) -> str:
    """A study that ends at once with this exit code, or by this signal."""
    return f"import os; os.kill(os.getpid(), {-code})" if code < 0 else f"raise SystemExit({code})"


@pytest.mark.parametrize("code", [1, 2, -9])
def test_a_study_that_fails_is_said_and_the_others_go_on(
    code: int, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setattr("theory.forecast.forecast", lambda *_: [])
    bad = Bridge(tmp_path, command=(sys.executable, "-c", dying(code)))
    assert run_cells(bad, (SMALL, replace(SMALL, pairs=49))) == 1
    printed = capsys.readouterr()
    assert "failed: walsh-h2-n48, walsh-h2-n49" in printed.out
    assert ("its numbers cannot be read" in printed.err) == (code == 1)
    assert not (tmp_path / TABLE).exists()


def test_the_cells_are_two_families_at_two_horizons_with_few_and_many_pairs():
    found = cells()
    assert [cell.name for cell in found if len(cell.figures) == 8] == ["walsh-h6-n1024"]
    crossed = {(c.family, c.horizon, c.pairs) for c in found if c.figures == EVERYWHERE}
    assert crossed == {
        (family, h, n) for family in ("walsh", "lookup") for h in (2, 6) for n in (256, 4096)
    }
    assert {cell.preset for cell in found} == set(PRESETS.values())
    assert choose(()) == found
    with pytest.raises(InputError, match="no cell 'x'; known: walsh-h6-n1024"):
        choose(("x",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cells", "walsh-h7-n1"], "no cell 'walsh-h7-n1'"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--replicates", "1"], "--replicates must be at least 2"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_bad_options_end_before_any_work(options: list[str], words: str, tmp_path: Path, capsys):
    assert main(["bridge", "--out", str(tmp_path / "o"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_fig5_and_fig6_have_tasks_of_their_own(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("theory.forecast.forecast", lambda *_: [])
    echo = "import json, sys; print(json.dumps(sys.argv[1:]))"
    bridge = Bridge(tmp_path, jobs=1, command=(sys.executable, "-c", echo))
    whole = cells()[0]
    predict(bridge, whole, print)
    assert train(bridge, whole) == 0
    folder = bridge.folder(whole)
    given = json.loads((folder / "study.log").read_text())
    for option in ("data", "short-task", "rouge-task", "predictions"):
        name = "task" if option == "data" else option.replace("-", "_")
        assert given[given.index(f"--{option}") + 1] == str(folder / f"{name}.json")
    assert given[-2:] == ["--jobs", "1"]


def test_the_table_has_its_columns_and_types(tmp_path: Path):
    row = {**dict.fromkeys(SCHEMA), "cell": "c", "horizon": 2, "value": 0.5}
    save_rows(tmp_path / TABLE, [row])
    found = pq.read_table(tmp_path / TABLE)
    assert found.column_names == list(SCHEMA)
    assert found.to_pylist() == [row]


def line(cell: str, value: float) -> dict:
    """One number of a cell."""
    return {**dict.fromkeys(SCHEMA), "cell": cell, "part": "policy", "name": "dpo", "value": value}


def test_cells_that_are_not_run_keep_their_numbers(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("theory.forecast.forecast", lambda *_: [])
    made = iter([1.0, 2.0, 3.0])
    measure = {"measure": "kl_to_optimum", "branch": "", "size": ""}
    monkeypatch.setattr(
        "theory.bridge_rows.rows_of", lambda _, cell: [{**line(cell.name, next(made)), **measure}]
    )
    bridge = Bridge(tmp_path, command=(sys.executable, "-c", ""))
    first, second = cells()[1:3]
    assert run_cells(bridge, (first, second)) == 0
    assert run_cells(bridge, (first,)) == 0
    found = {row["cell"]: row["value"] for row in load_rows(tmp_path / TABLE)}
    assert found == {first.name: 3.0, second.name: 2.0}
    again = capsys.readouterr().out.split("KL to the optimum")[-1]
    assert first.name in again
    assert second.name not in again  # what was not run is not printed
    refusing = replace(bridge, command=(sys.executable, "-c", dying(2)))
    assert run_cells(refusing, (second, replace(second, pairs=49))) == 1
    assert f"keeps an earlier run's numbers of: {second.name}\n" in capsys.readouterr().out
    assert {r["cell"]: r["value"] for r in load_rows(tmp_path / TABLE)} == found


def test_merged_rows_stand_in_the_order_of_the_cells():
    names = [cell.name for cell in cells()]
    earlier = [line(name, 0.0) for name in ("elsewhere", names[4], names[0], names[4])]
    rows = merged(earlier, [line(names[2], 1.0), line(names[0], 1.0)])
    assert [(row["cell"], row["value"]) for row in rows] == [
        (names[0], 1.0), (names[2], 1.0), (names[4], 0.0), (names[4], 0.0), ("elsewhere", 0.0),
    ]  # fmt: skip


def test_a_broken_table_ends_the_command_before_any_work(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("theory.bridge.predict", lambda *_: pytest.fail("work has begun"))
    (tmp_path / TABLE).write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"bridge\.parquet: not a readable parquet file"):
        run_cells(Bridge(tmp_path), (SMALL,))
    pq.write_table(pa.table({"x": [1]}), tmp_path / TABLE)
    with pytest.raises(InputError, match="column 'cell' is missing"):
        run_cells(Bridge(tmp_path), (SMALL,))


def test_a_table_of_fewer_columns_is_read(tmp_path: Path):
    pq.write_table(pa.table({"cell": ["a"], "value": [0.5]}), tmp_path / TABLE)
    assert load_rows(tmp_path / TABLE) == [{**dict.fromkeys(SCHEMA), "cell": "a", "value": 0.5}]
    assert load_rows(tmp_path / "none.parquet") == []
