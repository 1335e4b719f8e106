"""The benchmark scripts run, record what they say, and name the peers that are missing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments: str | Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    names = ("theory_soft", "theory_bt", "theory_automaton")
    paths = [folder / f"{name}.json" for name in names]
    for path in paths:
        run(FOLDER / f"{path.stem}.py", "--quick", "--json", path)
    return paths


def test_each_script_records_every_peer(results):
    soft, bt, automaton = (json.loads(path.read_text()) for path in results)
    names = {row["name"] for row in soft["rows"]}
    assert {"ours, same memory", "ours, new memory", "floor, same memory"} <= names
    assert {"scipy logsumexp", "numpy, linear space", "imitation", "quantecon"} <= names
    peers = {"ours", "numpy Newton", "scipy L-BFGS-B", "sklearn lbfgs", "choix ilsr_pairwise_dense"}
    assert peers <= {row["name"] for row in bt["rows"]}
    assert {"automaton", "dense tree"} <= {row["name"] for row in automaton["rows"]}
    for row in soft["rows"] + bt["rows"] + automaton["rows"]:
        assert row["ms"] is None or 0.0 < row["ms"]["min"] <= row["ms"]["median"]
        assert row["ms"] is not None or row["note"], "what did not run says why"


def test_ratios_are_of_the_row_they_name(results):
    rows = json.loads(results[0].read_text())["rows"]
    ours = next(row for row in rows if row["name"] == "ours, same memory")
    floor = next(row for row in rows if row["name"] == ours["ratio_to"])
    assert ours["ratio"]["min"] == pytest.approx(ours["ms"]["min"] / floor["ms"]["min"])


def test_the_picture_and_the_table(results, tmp_path):
    out = tmp_path / "benchmarks.png"
    table = run(FOLDER / "draw.py", *results, "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "| V=4 H=4 | ours, same memory |" in table
    for row in ("ours, new memory", "floor, same memory", "floor, new memory", "scipy logsumexp"):
        assert f"| V=4 H=4 | {row} |" in table
    assert "| V=4 H=4 | scipy logsumexp, values alone |" in table
    assert "target 2.0: " in table
    assert "theory_soft.py --quick" in table
    assert "## theory_automaton" in table


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("kind", "limit"), [("numpy", 3.0), ("JAX", 2.0)])
def test_a_call_grows_the_process_by_less_than_three_times_its_rewards(kind, limit):
    grown = float(run(FOLDER / "theory_soft.py", "--peak", "10", "6", kind))
    assert 1.1 < grown <= limit, "the policy alone is 10 / 9"


@pytest.mark.parametrize(("value", "ratio", "word"), [(2.9, None, "met"), (None, 3.1, "missed")])
def test_a_target_is_met_or_missed(monkeypatch, value, ratio, word):
    monkeypatch.syspath_prepend(str(FOLDER))
    timing = importlib.import_module("timing")
    line = timing.row("case", "ours", None, "", target=3.0, value=value)
    assert timing.verdict(line | {"ratio": {"min": ratio}}) == f"target 3.0: {word}"


def test_peers_must_reach_the_same_optimum(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    bench = importlib.import_module("theory_bt")
    assert bench.agreed("peer", [np.zeros(2)], [np.full(2, 1e-9)]) == 1e-9
    for other in (np.full(2, 1e-3), np.full(2, np.nan)):
        with pytest.raises(AssertionError, match="peer"):
            bench.agreed("peer", [np.zeros(2)], [other])
