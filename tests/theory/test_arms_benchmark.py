"""The benchmark of the sweep's fits runs, and says what it measured or why it did not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "theory_sweep.py"


def test_the_benchmark_of_the_sweep(tmp_path: Path):
    out = tmp_path / "sweep.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["case"], row["name"]): row for row in json.loads(out.read_text())["rows"]}
    names = {name for _, name in rows}
    assert {"scikit-learn loop", "ours, whole cell", "growth", "whole cell"} <= names
    assert rows["shapes seen before", "compilations"]["value"] == 0.0
    for row in rows.values():
        assert row["ms"] is not None or row["note"], "what did not run says why"
        assert row["ms"] is None or 0.0 < row["ms"]["min"] <= row["ms"]["median"]
