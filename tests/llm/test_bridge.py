"""The bridge on one small cell: forecast, train, measure exactly, judge; and how it resumes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from llm.presets import preset
from theory.__main__ import main
from theory.bridge import EVERYWHERE, PRESETS, Bridge, Cell, cells, choose, predict, train
from theory.bridge_rows import SCHEMA, TABLE
from theory.commands.bridge import run_cells
from theory.errors import InputError
from theory.predictions import load_predictions
from theory.tasks import WalshTask

SCRIPT = Path(__file__).with_name("small_study.py")
SMALL = Cell(WalshTask(prompt_bits=1, completion_bits=2), 48, "test")


def small(out: Path) -> Bridge:
    return Bridge(out, seeds=2, replicates=2, jobs=1, command=(sys.executable, str(SCRIPT)))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Bridge:
    """A finished bridge of one cell; its forecast is compiled without optimisation."""
    bridge = small(tmp_path_factory.mktemp("bridge"))
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert run_cells(bridge, (SMALL,)) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    return bridge


def test_every_prediction_gets_a_verdict_and_every_model_its_numbers(done: Bridge):
    table = pq.read_table(done.out / TABLE)
    assert table.column_names == list(SCHEMA)
    rows = table.to_pylist()
    predictions = load_predictions(done.folder(SMALL) / "predictions.json")
    verdicts = {row["name"]: row for row in rows if row["part"] == "verdict"}
    assert set(verdicts) == {p.quantity for p in predictions}
    for row in verdicts.values():
        assert row["outcome"] in ("supported", "contradicted", "inconclusive")
        assert row["value"] is not None
        assert row["low"] <= row["value"] <= row["high"]
    policies = {(r["name"], r["seed"]) for r in rows if r["part"] == "policy"}
    of_seeds = ("dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo", "local_rm_policy")
    assert policies == {("sft", None), *((name, s) for name in of_seeds for s in (0, 1))}
    assert all(np.isfinite(r["value"]) for r in rows if r["value"] is not None)
    assert {(r["cell"], r["family"], r["horizon"], r["pairs"]) for r in rows} == {
        ("walsh-h2-n48", "walsh", 2, 48)
    }


def test_what_is_zero_is_zero_and_what_is_measured_twice_agrees(done: Bridge):
    rows = pq.read_table(done.out / TABLE).to_pylist()
    exact = [r for r in rows if r["name"].startswith("same fit")]
    assert len(exact) == 8
    assert max(abs(r["value"]) for r in exact) < 1e-9
    missed = [r["value"] for r in rows if r["name"] == "other class: local_rm to dpo"]
    assert len(missed) == 4
    assert min(missed) > 1e-6  # two classes, one pass over the data: Theorem 2.2 is missed
    assert max(r["value"] for r in rows if r["measure"] == "recorded_gap") < 1e-6
    assert max(r["value"] for r in rows if r["measure"] == "lemma_gap") < 1e-9


def test_predictions_stand_before_anything_is_trained(done: Bridge):
    made = (done.folder(SMALL) / "predictions.json").stat().st_mtime_ns
    records = list(done.study(SMALL).glob("stages/*/record.json"))
    assert len(records) > 20
    assert all(record.stat().st_mtime_ns > made for record in records)


def test_a_second_run_trains_nothing_and_forecasts_nothing(done: Bridge):
    def times() -> dict[Path, int]:
        files = [*done.study(SMALL).glob("stages/*/record.json"), *done.out.glob("*/pred*.json")]
        return {file: file.stat().st_mtime_ns for file in files}

    before, table = times(), (done.out / TABLE).read_bytes()
    assert run_cells(done, (SMALL,)) == 0
    assert times() == before
    assert (done.out / TABLE).read_bytes() == table


def test_predictions_of_other_settings_are_made_again(done: Bridge, monkeypatch):
    made = []
    monkeypatch.setattr("theory.forecast.forecast", lambda *_: made.append(1) or [])
    again = replace(done, out=done.out / "again")
    assert not predict(done, SMALL, print)
    assert not made
    assert predict(again, SMALL, print)
    assert predict(replace(again, replicates=3), SMALL, print)
    assert predict(again, replace(SMALL, figures=("fig3",)), print)
    assert len(made) == 3


def test_a_study_that_fails_is_said_and_the_others_go_on(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("theory.forecast.forecast", lambda *_: [])
    bad = replace(small(tmp_path), command=(sys.executable, "-c", "import sys; sys.exit(2)"))
    assert run_cells(bad, (SMALL, replace(SMALL, pairs=49))) == 1
    assert "failed: walsh-h2-n48, walsh-h2-n49" in capsys.readouterr().out
    assert not (tmp_path / TABLE).exists()


def test_the_cells_are_two_families_at_two_horizons_with_few_and_many_pairs():
    found = cells()
    assert [cell.name for cell in found if len(cell.figures) == 8] == ["walsh-h6-n1024"]
    crossed = {(c.family, c.horizon, c.pairs) for c in found if c.figures == EVERYWHERE}
    assert crossed == {
        (family, h, n) for family in ("walsh", "lookup") for h in (2, 6) for n in (256, 4096)
    }
    for pairs, name in PRESETS.items():
        config = preset(name, "task")
        assert (config.data.n_pairs, config.online.samples) == (pairs, 8)
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
    bridge = replace(small(tmp_path), command=(sys.executable, "-c", echo))
    whole = cells()[0]
    predict(bridge, whole, print)
    assert train(bridge, whole) == 0
    folder = bridge.folder(whole)
    given = json.loads((folder / "study.log").read_text())
    for option in ("data", "short-task", "rouge-task", "predictions"):
        name = "task" if option == "data" else option.replace("-", "_")
        assert given[given.index(f"--{option}") + 1] == str(folder / f"{name}.json")
