"""Stages as Ray tasks on two nodes here: a killed worker changes no record."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from llm import __main__ as command
from llm.errors import InputError
from llm.running.cluster import Cluster, check_cluster
from tests.llm.fake_stages import plan, stage

ray = pytest.importorskip("ray", reason="the cluster needs Ray: pip install 'all-roads[ray]'")
# Ray starts its nodes by fork and exec at once; JAX, if another test loaded it, warns of any fork.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")

SCRIPT = Path(__file__).with_name("small_study.py")
spec = importlib.util.spec_from_file_location("small_study", SCRIPT)
assert spec is not None
assert spec.loader is not None
spec.loader.exec_module(importlib.util.module_from_spec(spec))  # registers the preset "test"

VICTIM = "local_rm[0]"


class Killer(threading.Thread):
    """SIGKILL to the first process that runs one stage, when it has begun."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.killed, self.stop = out, None, threading.Event()

    def run(self) -> None:
        name = VICTIM.replace("[", "-").rstrip("]")
        while not self.stop.is_set() and self.killed is None:
            for pulse in self.out.glob(f"stages/.{name}-*.partial/running.json"):
                try:
                    pid = json.loads(pulse.read_text())["pid"]
                except (OSError, ValueError):
                    continue
                os.kill(pid, signal.SIGKILL)
                self.killed = pid
                return
            time.sleep(0.005)


def _records(out: Path) -> dict[str, object]:
    found = {}
    for file in sorted(out.glob("stages/*/record.json")):
        record = json.loads(file.read_text())
        kept = ("metrics", "history", "weights_sha256", "inputs")
        found[file.parent.name] = {key: record[key] for key in kept}
    return found


def test_two_nodes_with_a_worker_killed_write_the_records_of_a_run_without_ray(
    tmp_path, shared_task_file
):
    from ray.cluster_utils import Cluster as Nodes

    def line(out: str, *more: str) -> list[str]:
        begin = ["study", "fig9", "--preset", "test", "--seeds", "1"]
        return [*begin, "--data", str(shared_task_file), "--out", str(tmp_path / out), *more]

    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    nodes = Nodes(initialize_head=True, head_node_args=options)
    killer = Killer(tmp_path / "cluster")
    try:
        nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        nodes.wait_for_nodes()
        killer.start()
        assert command.main(line("cluster", "--cluster", nodes.address)) == 0
    finally:
        killer.stop.set()
        nodes.shutdown()
    assert killer.killed is not None
    assert command.main(line("plain", "--jobs", "1")) == 0
    assert _records(tmp_path / "cluster") == _records(tmp_path / "plain")
    assert not list((tmp_path / "cluster").glob("stages/.*"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost:1", "--cluster localhost:1: nothing answers"),
        ("localhost:99999999", "nothing answers"),
        ("mars", "--cluster 'mars' is none of local, auto, host:port"),
    ],
)
def test_nothing_at_the_address_is_an_input_error(capsys, tmp_path, address, words):
    out = tmp_path / "out"
    assert command.main(["study", "fig3", "--cluster", address, "--out", str(out)]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_without_ray_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name: str, *rest: object, **more: object):
        if name == "ray":
            raise ImportError("no module named ray")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'all-roads\[ray\]'"):
        check_cluster("local")


class _FakeRay:
    """A cluster of nodes with so many GPUs, that runs nothing."""

    def __init__(self, *gpus: int) -> None:
        self.gpus, self.options, self.left = gpus, [], False

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": {"GPU": n} if n else {}} for n in self.gpus]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def remote(self, function):
        owner = self

        class Task:
            def options(self, **options):
                owner.options.append(options)
                return self

            def remote(self, *_):
                return len(owner.options)

        return Task()

    def shutdown(self) -> None:
        self.left = True


def _cluster(monkeypatch, tmp_path, fake: _FakeRay, **runtime: int) -> Cluster:
    monkeypatch.setattr("llm.running.cluster.connect", lambda address, jobs: fake)
    kinds = ("sft", "eval_policy", "verdicts")
    sampling = {"sampling": {"sampler": "vllm"}}
    stages = [stage(kind, kind=kind, **(sampling if "eval" in kind else {})) for kind in kinds]
    return Cluster(plan(tmp_path, *stages, **runtime), "local")


def test_tasks_ask_for_the_gpus_of_their_stage(monkeypatch, tmp_path):
    fake = _FakeRay(0, 8)
    cluster = _cluster(monkeypatch, tmp_path, fake, gpus=8, tensor_parallel=2, data_parallel=2)
    for one in cluster.plan.stages:
        assert cluster.room(one)
        cluster.start(one)
    assert [options["num_gpus"] for options in fake.options] == [8, 4, 0]
    assert all(options["max_retries"] == 1 for options in fake.options)


def test_without_gpus_tasks_ask_for_none(monkeypatch, tmp_path):
    fake = _FakeRay(0, 0)
    cluster = _cluster(monkeypatch, tmp_path, fake, gpus=2)
    cluster.start(cluster.plan.stages[0])
    assert fake.options[0]["num_gpus"] == 0


def test_more_gpus_than_any_node_has_are_refused(monkeypatch, tmp_path):
    fake = _FakeRay(4, 4)
    with pytest.raises(InputError, match="sft takes 8 GPUs"):
        _cluster(monkeypatch, tmp_path, fake, gpus=8)
    assert fake.left
