"""The bridge on one small cell: forecast, train, measure exactly, judge; and how it resumes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm.protocol.presets import preset
from theory.predictions import load_predictions

SCRIPT = Path(__file__).with_name("small_study.py")
TABLE = "bridge.parquet"
# In a process of its own: JAX, once loaded, warns of every fork that later tests make.
CODE = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_disable_most_optimizations", True)
from theory.bridge import Bridge, Cell
from theory.commands.bridge import run_cells
from theory.tasks import WalshTask
command = (sys.executable, sys.argv[2])
bridge = Bridge(Path(sys.argv[1]), seeds=2, replicates=2, jobs=1, command=command)
sys.exit(run_cells(bridge, (Cell(WalshTask(prompt_bits=1, completion_bits=2), 48, "test"),)))
"""


@dataclass(frozen=True)
class Done:
    """A finished bridge of one cell."""

    out: Path

    @property
    def cell(self) -> Path:
        return self.out / "walsh-h2-n48"

    @property
    def study(self) -> Path:
        return self.cell / "study"

    def rows(self) -> list[dict]:
        return pq.read_table(self.out / TABLE).to_pylist()


def run(out: Path) -> str:
    """What it printed."""
    command = [sys.executable, "-W", "error", "-c", CODE, str(out), str(SCRIPT)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    out = tmp_path_factory.mktemp("bridge")
    printed = run(out)
    for word in ("optimum", "Theorem 2.2 says 0", "Forecast", "Assumptions", "walsh-h2-n48"):
        assert word in printed
    return Done(out)


def test_every_prediction_gets_a_verdict_and_every_model_its_numbers(done: Done):
    rows = done.rows()
    predictions = load_predictions(done.cell / "predictions.json")
    verdicts = {row["name"]: row for row in rows if row["part"] == "verdict"}
    assert set(verdicts) == {p.quantity for p in predictions}
    for row in verdicts.values():
        assert row["outcome"] in ("supported", "contradicted", "inconclusive")
        assert row["value"] is not None
        assert row["low"] <= row["value"] <= row["high"]
    policies = {(r["name"], r["seed"]) for r in rows if r["part"] == "policy"}
    of_seeds = ("dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo", "local_rm_policy")
    assert policies == {("sft", None), *((name, s) for name in of_seeds for s in (0, 1))}
    models = {(r["name"], r["seed"]) for r in rows if r["measure"] == "val_accuracy"}
    of_seeds = ("global_rm", "global_rm_matched", "local_rm", "dpo_rm")
    assert models == {(name, seed) for name in of_seeds for seed in (0, 1)}
    assert all(np.isfinite(r["value"]) for r in rows if r["value"] is not None)
    assert {(r["cell"], r["family"], r["horizon"], r["pairs"]) for r in rows} == {
        ("walsh-h2-n48", "walsh", 2, 48)
    }


def test_what_is_zero_is_zero_and_what_is_measured_twice_agrees(done: Done):
    rows = done.rows()
    roads = [r for r in rows if r["measure"] in ("kl", "kl_back")]
    exact = [r for r in roads if r["name"].startswith("same fit")]
    assert len(exact) == 8
    assert max(abs(r["value"]) for r in exact) < 1e-9
    missed = [r["value"] for r in roads if r["name"] == "other class: local_rm to dpo"]
    assert len(missed) == 4
    assert min(missed) > 1e-6  # two classes, one pass over the data: Theorem 2.2 is missed
    assert max(r["value"] for r in rows if r["measure"] == "recorded_gap") < 1e-6
    assert max(r["value"] for r in rows if r["measure"] == "lemma_gap") < 1e-9


def test_predictions_stand_before_anything_is_trained(done: Done):
    made = (done.cell / "predictions.json").stat().st_mtime_ns
    records = list(done.study.glob("stages/*/record.json"))
    assert len(records) > 20
    assert all(record.stat().st_mtime_ns > made for record in records)


def test_a_second_run_trains_nothing_and_forecasts_nothing(done: Done):
    def times() -> dict[Path, int]:
        files = [*done.study.glob("stages/*/record.json"), *done.out.glob("*/pred*.json")]
        return {file: file.stat().st_mtime_ns for file in files}

    before, table = times(), (done.out / TABLE).read_bytes()
    assert "Theorem 2.2" in run(done.out)
    assert times() == before
    assert (done.out / TABLE).read_bytes() == table


@pytest.mark.parametrize("pairs", [256, 4096])
def test_presets_of_few_and_many_pairs(pairs: int):
    config = preset(f"tiny-{pairs}", "task")
    assert config.preset == f"tiny-{pairs}"
    assert {config.data.n_pairs, *(d.n_pairs for d in config.branches.values())} == {pairs}
    assert config.online == preset("tiny", "task").online
