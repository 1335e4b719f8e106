"""`python -m theory sweep`: resume, repair, refusal, dry run, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import theory.sweep.run
from theory.__main__ import main
from theory.fit import ConvergenceError
from theory.sweep.files import PARTIAL, to_bytes

GRID = """
name = "mini"
seeds = [0, 1]
ridges = [0.3, 3.0]
[[block]]
name = "b"
arms = ["two_stage"]
bits = 3
degree = 2
horizon = 3
n_pairs = [8, 16]
[[block]]
name = "words"
family = "coverage"
words = 2
salient = 1
prompts = 2
horizon = 2
arms = ["two_stage"]
n_pairs = 8
"""


ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path]:
    """A grid and its finished folder; tests copy it."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "grid.toml").write_text(GRID)
    out = folder / "out"
    assert main(["sweep", str(folder / "grid.toml"), "--out", str(out)]) == 0
    return folder / "grid.toml", out


@pytest.fixture
def copy(done: tuple[Path, Path], tmp_path: Path) -> Path:
    out = tmp_path / "copy"
    subprocess.run(["cp", "-rp", str(done[1]), str(out)], check=True)
    return out


def stamps(out: Path) -> dict[str, tuple[int, bytes]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (out / "cells").iterdir()}


def test_a_finished_sweep_holds_its_cells_and_the_efficiency(done: tuple[Path, Path]):
    grid, out = done
    record = json.loads((out / "grid.json").read_text())
    assert record["version"] == 2
    assert sorted(p.name for p in (out / "cells").iterdir()) == sorted(
        cell["file"] for cell in record["cells"]
    )
    assert sorted(p.name for p in out.iterdir()) == ["cells", "efficiency.parquet", "grid.json"]
    assert pq.read_table(out / "efficiency.parquet").num_rows == 0  # one arm has no ratio
    assert len(record["cells"]) == 3
    before = stamps(out)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert stamps(out) == before


def test_only_the_missing_cell_is_run_again_with_the_same_bytes(done, copy: Path, capsys):
    before = stamps(copy)
    gone = min(before)
    (copy / "cells" / gone).unlink()
    assert main(["sweep", str(done[0]), "--out", str(copy)]) == 0
    assert "1 cells run, 2 reused" in capsys.readouterr().out
    after = stamps(copy)
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in before.items()
    }
    assert [name for name in after if after[name] != before[name]] == [gone]


@pytest.mark.parametrize("damage", ["tail", "empty", "middle"])
def test_a_torn_cell_is_named_and_run_again_and_nothing_else_is_touched(
    done, copy: Path, capsys, damage: str
):
    before = stamps(copy)
    name = max(before)
    path = copy / "cells" / name
    data = bytearray(path.read_bytes())
    if damage == "middle":
        data[len(data) // 4] ^= 0xFF
    path.write_bytes({"tail": data[:-20], "empty": b"", "middle": data}[damage])
    assert main(["sweep", str(done[0]), "--out", str(copy)]) == 0
    captured = capsys.readouterr()
    assert f"{path} is torn" in captured.err
    assert "1 cells run, 2 reused" in captured.out
    after = stamps(copy)
    assert after[name][1] == before[name][1]
    assert {n: after[n] for n in after if n != name} == {n: before[n] for n in before if n != name}


def test_what_a_killed_run_leaves_behind_is_no_cell(done, copy: Path):
    before = stamps(copy)
    name = min(before)
    (copy / "cells" / name).rename(copy / "cells" / (name + PARTIAL))
    assert main(["sweep", str(done[0]), "--out", str(copy)]) == 0
    assert {n: d for n, (_, d) in stamps(copy).items()} == {n: d for n, (_, d) in before.items()}


@pytest.mark.parametrize("kind", ["stranger", "columns", "another cell"])
def test_a_file_that_is_not_this_grids_is_refused_and_left_alone(
    done, copy: Path, capsys, kind: str
):
    first, second, *_ = sorted((copy / "cells").iterdir())
    if kind == "stranger":
        (copy / "cells" / "notes.txt").write_text("mine")
        words = "notes.txt is no cell of this grid"
    elif kind == "columns":
        first.write_bytes(to_bytes(pa.table({"cell": ["b"], "best_ridge": [True]})))
        words = "columns are not those of version 2"
    else:
        first.write_bytes(second.read_bytes())
        words = "holds the cells"
    before = stamps(copy)
    assert main(["sweep", str(done[0]), "--out", str(copy)]) == 2
    assert words in capsys.readouterr().err
    assert stamps(copy) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body | {"version": 1}, "made by version 1 of the sweep, this is 2"),
        (lambda body: body | {"name": "other"}, "made by another grid"),
        (lambda body: [], "made by version None"),
    ],
)
def test_a_folder_of_another_grid_or_version_is_refused(done, copy: Path, capsys, change, words):
    record = copy / "grid.json"
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    before = stamps(copy)
    assert main(["sweep", str(done[0]), "--out", str(copy)]) == 2
    assert words in capsys.readouterr().err
    assert stamps(copy) == before


def test_a_foreign_folder_and_a_torn_grid_json_are_refused(tmp_path: Path, grid: Path, capsys):
    assert main(["sweep", str(grid), "--out", str(tmp_path)]) == 2
    assert "holds files but no grid.json" in capsys.readouterr().err
    (tmp_path / "grid.json").write_text('{"version"')
    assert main(["sweep", str(grid), "--out", str(tmp_path)]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, grid: Path, capsys):
    assert main(["sweep", str(grid), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "3 cells, 2 replicates each, 24 fits; about" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(["sweep", "quick", "--dry-run"]) == 0
    assert "pairs-walsh-degree2-N1024: two_stage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("degree = 2", "degree = 9", "block 'b': degree must lie in 1..3, got 9"),
        ("horizon = 3", "horizon = 2", "horizon 2 does not divide 3 bits"),
        ('"coverage"', '"poems"', "block 'words': family 'poems' is none of"),
        ("seeds = [0, 1]", "replicates = 1000000", "the limit is half of this machine's memory"),
    ],
)
def test_a_bad_grid_exits_with_2(tmp_path: Path, grid: Path, capsys, old, new, words):
    if "replicates" in new:
        grid.write_text(
            GRID.replace("bits = 3", "bits = 12").replace("horizon = 3", "horizon = 12")
        )
    grid.write_text(grid.read_text().replace(old, new))
    assert main(["sweep", str(grid), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--out is needed"),
        (["--out", "x", "--workers", "2"], "--workers goes with --cluster"),
        (["--out", "x", "--workers", "0", "--cluster", "local"], "--workers must be at least 1"),
    ],
)
def test_options_that_make_no_sense_exit_with_2(grid: Path, capsys, options, words):
    assert main(["sweep", str(grid), *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_leaves_no_folder(
    tmp_path: Path, grid: Path, capsys, address: str
):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    assert main(["sweep", str(grid), "--out", str(out), "--cluster", address]) == 2
    assert "--cluster" in capsys.readouterr().err
    assert not out.exists()


def test_a_whole_file_with_rows_missing_is_refused(copy: Path, grid: Path, capsys):
    path = sorted((copy / "cells").iterdir())[0]
    path.write_bytes(to_bytes(pq.read_table(path).slice(0, 3)))
    assert main(["sweep", str(grid), "--out", str(copy)]) == 2
    assert "not one row for every arm, candidate and seed" in capsys.readouterr().err


def test_a_grid_json_nested_beyond_reading_is_refused(tmp_path: Path, grid: Path, capsys):
    (tmp_path / "grid.json").write_text(100_000 * "[")
    assert main(["sweep", str(grid), "--out", str(tmp_path)]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path, grid, capsys, monkeypatch):
    right = theory.sweep.run.run_cell

    def fails(cell):
        if cell.n_pairs == 16:
            raise ConvergenceError("too steep")
        return right(cell)

    monkeypatch.setattr(theory.sweep.run, "run_cell", fails)
    out = tmp_path / "out"
    assert main(["sweep", str(grid), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "too steep" in captured.err
    assert "1 cells failed: b-walsh-bits3-degree2-horizon3-N16" in captured.err
    assert len(list((out / "cells").iterdir())) == 2
    assert not (out / "efficiency.parquet").exists()
    monkeypatch.setattr(theory.sweep.run, "run_cell", right)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert "1 cells run, 2 reused" in capsys.readouterr().out


def test_killed_in_the_middle_it_repeats_no_cell(done, tmp_path: Path, capsys):
    """SIGKILL once the first cell is there; what was stored stands, the rest follows."""
    grid, whole = done
    out = tmp_path / "out"
    command = [sys.executable, "-m", "theory", "sweep", str(grid), "--out", str(out)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": ROOT})
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("cells/*.parquet")) and time.monotonic() < deadline:
            assert process.poll() is None or list(out.glob("cells/*.parquet"))
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    stored = stamps(out)
    kept = {name for name in stored if not name.endswith(PARTIAL)}
    assert kept
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    after = stamps(out)
    assert {name: after[name] for name in kept} == {name: stored[name] for name in kept}
    assert set(after) == set(stamps(whole))
    assert f"{3 - len(kept)} cells run" in capsys.readouterr().out
