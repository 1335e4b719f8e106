"""The benchmark scripts run, record what they say, and name the peers that are missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    paths = [folder / f"{name}.json" for name in ("theory_soft", "theory_bt")]
    for path in paths:
        run(FOLDER / f"{path.stem}.py", "--quick", "--json", path)
    return paths


def test_each_script_records_every_peer(results):
    soft, bt = (json.loads(path.read_text()) for path in results)
    names = {row["name"] for row in soft["rows"]}
    assert {"ours, same memory", "ours, new memory", "floor, same memory"} <= names
    assert {"scipy logsumexp", "numpy, linear space", "imitation", "quantecon"} <= names
    peers = {"ours", "numpy Newton", "scipy L-BFGS-B", "sklearn lbfgs", "choix ilsr_pairwise_dense"}
    assert peers <= {row["name"] for row in bt["rows"]}
    for row in soft["rows"] + bt["rows"]:
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
