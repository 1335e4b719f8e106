"""Who runs when and where: workers that die, GPUs that are shared out, stages that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llm import __main__ as command
from llm.pulse import Pulse, beating, read_pulse
from llm.records import ERROR, Store
from llm.running.execute import gpus_of
from llm.running.places import DIED, Workers
from llm.running.runner import BLOCKED, _schedule, most_urgent_first
from llm.running.state import save_graph, states
from llm.runtime import Runtime
from tests.llm.fake_stages import plan, stage, task


class _Silent:
    """A board that only remembers."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def report(self, stage_id: str, fraction: float) -> None: ...

    def look(self) -> None: ...

    def end(self, stage_id: str) -> None:
        self.ended.append(stage_id)


def _run(made, *, jobs=2, gpus=()) -> dict[str, str]:
    workers = Workers(made, jobs=jobs, gpus=gpus, task=task)
    board = _Silent()
    try:
        return _schedule(made.stages, workers, board)  # type: ignore[arg-type]
    finally:
        workers.close()


def _notes(made) -> dict[str, dict]:
    store = Store(made.root)
    return {s.id: store.record(made.keys[s.id]) for s in made.stages if store.done(made.keys[s.id])}


def test_a_worker_that_dies_fails_its_own_stage_and_what_rests_on_it(tmp_path):
    """It dies while another one runs: that one ends, and what comes later finds a new worker."""
    made = plan(
        tmp_path,
        stage("dies", do="die", cost=9),
        stage("beside", wait=0.8, cost=8),
        stage("rests", "dies"),
        stage("later", "beside"),
        stage("last", "later"),
    )
    assert _run(made) == {"dies": DIED, "rests": BLOCKED}
    assert set(_notes(made)) == {"beside", "later", "last"}
    assert (Store(tmp_path).partial(made.keys["dies"]) / ERROR).read_text() == DIED


def test_an_interrupt_ends_the_stages_that_run(tmp_path):
    """Not after them: one may take hours."""
    made = plan(tmp_path, stage("long", wait=60.0))
    workers = Workers(made, jobs=1, gpus=(), task=task)

    class Impatient(_Silent):
        def look(self) -> None:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _schedule(made.stages, workers, Impatient())  # type: ignore[arg-type]
    (worker,) = workers.workers.values()
    workers.close()
    worker.shutdown(wait=True)  # as Python does when it exits
    assert time.monotonic() - began < 40


def test_a_failed_stage_says_why_and_stops_only_what_rests_on_it(tmp_path):
    made = plan(tmp_path, stage("a", do="fail"), stage("b", "a"), stage("c", "b"), stage("d"))
    assert _run(made) == {"a": "ValueError: no", "b": BLOCKED, "c": BLOCKED}
    assert set(_notes(made)) == {"d"}


def test_a_stage_on_a_gpu_has_it_alone_and_judges_run_beside(tmp_path):
    """Two GPUs: two stages of one at a time; one of two alone; one without any beside them all."""
    made = plan(
        tmp_path,
        stage("judged", kind="verdicts", wait=2.5, cost=50),
        *(stage(f"one{i}", kind="reference", wait=0.2, cost=9) for i in range(4)),
        stage("two", "one0", "one1", "one2", "one3", wait=0.1),
        gpus=2,
    )
    assert _run(made, jobs=None, gpus=("5", "7")) == {}
    notes = _notes(made)
    assert {notes[f"one{i}"]["visible"] for i in range(4)} == {"5", "7"}
    assert notes["two"]["visible"] == "5,7"
    assert notes["judged"]["visible"] == ""
    assert notes["judged"]["ended"] > notes["one0"]["ended"]
    for one in notes.values():
        for other in notes.values():
            shared = set(one["visible"].split(",")) & set(other["visible"].split(",")) - {""}
            if one is not other and shared:
                assert one["ended"] <= other["begun"] or other["ended"] <= one["begun"]


def test_a_stage_that_fits_nowhere_is_no_endless_loop(tmp_path):
    made = plan(tmp_path, stage("wide"), gpus=3)
    with pytest.raises(RuntimeError, match="nowhere to run wide"):
        _run(made, gpus=("0", "1"))


def test_gpus_of_stages():
    runtime = Runtime(gpus=8, tensor_parallel=2, data_parallel=3)
    vllm = {"sampling": {"sampler": "vllm"}}
    generate = {"sampling": {"sampler": "transformers"}}
    for kind in ("sft", "global_rm", "local_rm", "dpo", "online_dpo"):
        assert gpus_of(stage("x", kind=kind), runtime) == 8
    for kind in ("online_pairs", "pool", "eval_policy", "made_pairs"):
        assert gpus_of(stage("x", kind=kind, **vllm), runtime) == 6
        assert gpus_of(stage("x", kind=kind, **generate), runtime) == 1
    for kind in ("data", "verdicts"):
        assert gpus_of(stage("x", kind=kind), runtime) == 0
    assert gpus_of(stage("x", kind="made_pairs", how="two_word", **vllm), runtime) == 0
    assert gpus_of(stage("x", kind="eval_global_rm"), runtime) == 1
    local = {"judge": {"model": "local:/models/judge"}}
    assert gpus_of(stage("x", kind="verdicts", **local), runtime) == 2
    assert gpus_of(stage("x", kind="verdicts", judge={"model": "gpt-4o"}), runtime) == 0
    assert gpus_of(stage("x", kind="made_pairs", how="narrow", **vllm, **local), runtime) == 6


def test_the_longest_chain_starts_first():
    chain = [stage("a"), stage("b", "a"), stage("alone", cost=1.5), stage("c", "b")]
    assert [s.id for s in most_urgent_first(chain)] == ["a", "b", "alone", "c"]


# --- signs of life -------------------------------------------------------------------------------


def test_a_pulse_lives_as_long_as_its_process(tmp_path):
    with beating(tmp_path) as report:
        report(0.25)
        time.sleep(1.2)
        pulse = read_pulse(tmp_path)
        assert pulse is not None
        assert pulse.alive
        assert (pulse.pid, pulse.progress) == (os.getpid(), 0.25)
    assert read_pulse(tmp_path) is None
    assert not list(tmp_path.iterdir())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not replace(pulse, pid=ended.pid).alive
    assert not replace(pulse, born="1").alive  # a pid that came back is another process


def test_a_process_elsewhere_is_alive_until_it_is_silent():
    now = Pulse("another machine", 1, "1", 0.0, time.time())
    assert now.alive
    assert not replace(now, time=time.time() - 3600).alive


def test_a_torn_pulse_is_none(tmp_path: Path):
    for text in ("", "{", "[]", '{"host": 1}'):
        (tmp_path / "running.json").write_text(text)
        assert read_pulse(tmp_path) is None


def test_every_state_is_told_apart(tmp_path, capsys):
    made = plan(
        tmp_path,
        stage("done"),
        stage("fails", do="fail"),
        stage("dies", do="die"),
        stage("waits", "dies", "done"),
        stage("runs"),
        stage("killed"),
    )
    (tmp_path / "identity.json").write_text("{}")
    save_graph(made)
    assert set(_run(replace(made, stages=made.stages[:3]))) == {"fails", "dies"}
    store = Store(tmp_path)
    failed = store.partial(made.keys["fails"])
    (failed / ERROR).write_text("Traceback ...\nValueError: no\n")
    (store.partial(made.keys["killed"])).mkdir()
    running = store.partial(made.keys["runs"])
    running.mkdir()
    with beating(running):
        found = {s.id: s for s in states(tmp_path)}
        assert command.main(["status", str(tmp_path), "--json"]) == 1
    assert {name: s.state for name, s in found.items()} == {
        "done": "done",
        "fails": "failed",
        "dies": "failed",
        "waits": "waiting",
        "runs": "running",
        "killed": "died",
    }
    assert found["fails"].reason == "ValueError: no"
    assert found["dies"].reason == DIED
    assert found["waits"].waits_for == ("dies",)
    assert found["runs"].progress == 0.0
    assert found["done"].seconds == 0.0
    assert {s["id"]: s["state"] for s in json.loads(capsys.readouterr().out)} == {
        name: s.state for name, s in found.items()
    }
    assert command.main(["status", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "1 done, 2 failed, 1 waiting, 2 died" in shown
    assert "ValueError: no" in shown
