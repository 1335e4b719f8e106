"""The sweep on a Ray cluster of two nodes here: a worker killed in the middle changes nothing."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from theory.cluster import run_cells
from theory.errors import InputError
from theory.sweep import load_grid
from theory.sweep.files import missing, prepare, store

ray = pytest.importorskip("ray", reason="the cluster needs Ray: pip install 'all-roads[ray]'")
# Ray starts its nodes by fork and exec at once; JAX, if another test loaded it, warns of any fork.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")

GRID = """
name = "cluster"
replicates = 3
ridges = [0.3, 3.0]
[[block]]
name = "b"
arms = ["two_stage", "offline_proper"]
bits = 3
degree = 2
horizon = 3
n_pairs = [8, 16, 32, 64]
"""
WORKER = "ray::_cell_bytes"  # the name that Ray gives to a process that runs our task


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "grid.toml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def plain(grid: Path) -> dict[str, bytes]:
    """The files of a sweep without Ray, from a process of its own."""
    out = grid.with_name("plain")
    command = [sys.executable, "-m", "theory", "sweep", str(grid), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    return files(out)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "cells").iterdir()}


class Killer(threading.Thread):
    """SIGKILL to the first worker process that is seen running a cell."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed: int | None = None
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set() and self.killed is None:
            for folder in Path("/proc").iterdir():
                if folder.name.isdecimal() and self.is_worker(folder):
                    time.sleep(0.3)  # well inside its cell
                    if self.is_worker(folder):
                        os.kill(int(folder.name), signal.SIGKILL)
                        self.killed = int(folder.name)
                        return
            time.sleep(0.01)

    @staticmethod
    def is_worker(folder: Path) -> bool:
        try:
            return (folder / "cmdline").read_bytes().startswith(WORKER.encode())
        except OSError:
            return False


def test_two_nodes_with_a_worker_killed_write_the_files_of_a_run_without_ray(
    grid: Path, plain: dict[str, bytes], tmp_path: Path
):
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    killer = Killer()
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        loaded = load_grid(grid)
        prepare(tmp_path, loaded)
        killer.start()
        results = list(run_cells(missing(tmp_path, loaded)[0], cluster.address))
    finally:
        killer.stop.set()
        cluster.shutdown()
    assert killer.killed is not None
    assert sorted(cell.name for cell, _ in results) == sorted(c.name for c in loaded.cells)
    for cell, data in results:
        assert isinstance(data, bytes), data
        store(tmp_path, cell, data)
    assert files(tmp_path) == plain


def test_an_error_in_a_cell_comes_back_as_itself_and_the_others_end(grid: Path):
    cells = list(load_grid(grid).cells[:2])
    object.__setattr__(cells[0], "arms", ("nobody",))
    results = dict(run_cells(cells, "local", workers=1))
    assert isinstance(results[cells[0]], InputError)
    assert "there is no arm 'nobody'" in str(results[cells[0]])
    assert isinstance(results[cells[1]], bytes)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost:1", "--cluster localhost:1: nothing answers"),
        ("localhost:99999999", "nothing answers"),
        ("mars", "--cluster 'mars' is none of local, auto, host:port"),
        ("auto", "--cluster auto: "),
    ],
)
def test_nothing_at_the_address_is_an_input_error(grid: Path, address: str, words: str):
    with pytest.raises(InputError, match=words):
        list(run_cells(list(load_grid(grid).cells), address))


def test_without_ray_the_extra_is_named(grid: Path, monkeypatch):
    real = builtins.__import__

    def refuse(name: str, *rest: object, **more: object):
        if name == "ray":
            raise ImportError("no module named ray")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'all-roads\[ray\]'"):
        list(run_cells(list(load_grid(grid).cells), "local"))
