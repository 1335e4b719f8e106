"""`python -m theory sweep`: resume, refusal, dry run, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from theory.__main__ import main

GRID = """
name = "mini"
seeds = [0, 1]
ridges = [0.3, 3.0]
[[block]]
name = "b"
arms = ["two_stage", "offline_matched"]
bits = 3
degree = 2
sharpness = 1.0
horizon = 3
n_pairs = [8, 16]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def test_a_sweep_resumes_and_repeats_itself(tmp_path: Path, grid: Path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    record = json.loads((out / "grid.json").read_text())
    files = sorted((out / "cells").iterdir())
    assert [f.name for f in files] == sorted(cell["file"] for cell in record["cells"])
    tables = [pq.read_table(f) for f in files]
    times = [f.stat().st_mtime_ns for f in files]
    files[0].unlink()
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert "1 cells run, 1 reused" in capsys.readouterr().out
    assert files[1].stat().st_mtime_ns == times[1]
    assert [pq.read_table(f) for f in files] == tables


def test_another_grid_in_the_same_folder_is_refused(tmp_path: Path, grid: Path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    before = sorted(f.name for f in (out / "cells").iterdir())
    grid.write_text(GRID.replace("seeds = [0, 1]", "seeds = [0, 2]"))
    assert main(["sweep", str(grid), "--out", str(out)]) == 2
    assert "made by another grid" in capsys.readouterr().err
    assert sorted(f.name for f in (out / "cells").iterdir()) == before


def test_a_dry_run_writes_nothing(tmp_path: Path, grid: Path, capsys):
    assert main(["sweep", str(grid), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "2 cells" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("degree = 2", "degree = 9", "degree 9"), ("horizon = 3", "horizon = 2", "horizon 2")],
)
def test_a_bad_grid_exits_with_2(tmp_path: Path, grid: Path, capsys, old, new, words):
    grid.write_text(GRID.replace(old, new))
    assert main(["sweep", str(grid), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_refused(tmp_path: Path, grid: Path, capsys):
    assert main(["sweep", str(grid), "--out", str(tmp_path)]) == 2
    assert "holds files but no grid.json" in capsys.readouterr().err
