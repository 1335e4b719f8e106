"""Several processes: the numbers of one, errors as one line, nothing left behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from llm import tables
from llm.config import TrainConfig
from llm.data.example import Example
from llm.errors import InputError
from llm.models.build import save_policy
from llm.protocol.graph import Stage
from llm.records import write_json
from llm.running.launch import FOLDER, ProcessError, run_stage
from llm.runtime import Runtime
from llm.stages.work import Work
from llm.training.order import LengthSampler, Shares

sys.path.insert(0, str(Path(__file__).parent))
import small_training as small

HERE = Path(__file__).parent
SCRIPT = HERE / "small_training.py"

# --- rows over processes and micro-batches -------------------------------------------------------


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 3), (2, 1), (3, 2), (4, 4)])
@pytest.mark.parametrize("rows", [1, 16, 35])
def test_every_row_weighs_the_same_in_its_step(processes, accumulation, rows):
    """Summed over parts and processes, a row of a step of m rows weighs 1/m: once an epoch."""
    lengths = list(range(1, rows + 1))

    def sampler():
        return LengthSampler(lengths, batch_size=8, seed=3)

    ranks = [
        Shares(sampler(), accumulation=accumulation, processes=processes, rank=rank)
        for rank in range(processes)
    ]
    batches = [list(rank) for rank in ranks]
    steps = math.ceil(rows / 8)
    assert {len(b) for b in batches} == {len(r) for r in ranks} == {steps * accumulation}
    order = list(sampler())
    for step in range(steps):
        expected = order[8 * step : 8 * step + 8]
        weights: dict[int, float] = {}
        for rank in batches:
            for part in rank[step * accumulation : (step + 1) * accumulation]:
                for place in part:
                    weight = place.share / (len(part) * processes * accumulation)
                    weights[place.index] = weights.get(place.index, 0.0) + weight
        assert sorted(weights) == sorted(expected)
        assert all(w == pytest.approx(1 / len(expected), rel=1e-12) for w in weights.values())


def test_the_order_of_an_epoch_does_not_depend_on_the_processes():
    lengths = [1 + i % 7 for i in range(40)]
    alone = Shares(LengthSampler(lengths, batch_size=8, seed=0), accumulation=1)
    first = [place.index for part in alone for place in part]
    alone.set_epoch(1)
    second = [place.index for part in alone for place in part]
    assert first != second
    assert sorted(first) == sorted(second) == list(range(40))
    halves = [
        Shares(LengthSampler(lengths, batch_size=8, seed=0), accumulation=1, processes=2, rank=r)
        for r in (0, 1)
    ]
    for half in halves:
        half.set_epoch(1)
    parts = zip(*halves, strict=True)
    assert [place.index for a, b in parts for place in (*a, *b)] == second


# --- two processes train as one ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which two processes (gloo) left what they trained."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-W", "error::UserWarning", "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc-per-node=2", str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", small.CASES)
def test_two_processes_train_as_one(name, trained, tmp_path):
    """Losses to 1e-5, weights to 1e-5 (of 1): a copy each or split, in pieces, killed or not."""
    history, weights = torch.load(trained / f"{name}.pt")
    case = small.CASES[name]
    alone = replace(case, accumulation=1, killed=False)
    expected, whole = small.run(alone, tmp_path)
    assert [entry["step"] for entry in history] == [entry["step"] for entry in expected]
    for entry, other in zip(history, expected, strict=True):
        assert entry.keys() == other.keys()
        assert entry["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert entry == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert weights.keys() == whole.keys()
    start = small.make(case)[0].model.state_dict()
    assert max(float((whole[n] - start[n]).abs().max()) for n in whole) > 1e-3
    for tensor_name, tensor in whole.items():
        torch.testing.assert_close(weights[tensor_name], tensor, atol=1e-5, rtol=0)


# --- a stage in processes of its own -------------------------------------------------------------


def _work(root, *, gpus, kind="local_rm", rows=24, epochs=2, report=lambda fraction: None):
    """A training stage on random pairs, its inputs beside it."""
    data, policy, folder = root / "data", root / "policy", root / "stages" / f".{kind}.partial"
    for path in (data, policy, folder):
        path.mkdir(parents=True, exist_ok=True)
    examples = [
        Example(str(i), str(i), "", row.prompt, ("", ""), row.completions)
        for i, row in enumerate(small.pairs(rows))
    ]
    tables.write_examples(data / "pairs.parquet", examples)
    words = {"size": small.VOCABULARY, "eos": small.EOS, "pad": small.PAD}
    write_json(data / "vocabulary.json", words)
    save_policy(small.policy(), policy)
    train = TrainConfig(8, 1e-3, 8, "linear", epochs=epochs, fixed_rate=1e-3, save_steps=2)
    settings = {"train": {**asdict(train), "precision": "fp32"}, "beta": 0.3}
    stage = Stage(kind, kind, 0, (("data", "data"), ("policy", "sft")), settings, 1)
    inputs = {"data": data, "policy": policy}
    runtime = Runtime(gpus=gpus, tracker="none")
    return Work(stage, inputs, folder, "", None, runtime, report)


def test_a_stage_in_two_processes_ends_as_in_one(tmp_path):
    fractions = []
    several = run_stage(_work(tmp_path / "two", gpus=2, report=fractions.append))
    alone = run_stage(_work(tmp_path / "one", gpus=1))
    assert several.metrics == pytest.approx(dict(alone.metrics), rel=1e-5)
    assert several.history == [pytest.approx(entry, rel=1e-4, abs=1e-5) for entry in alone.history]
    folder = tmp_path / "two" / "stages" / ".local_rm.partial"
    assert (folder / "model.safetensors").is_file()
    assert not (folder / FOLDER).exists()
    assert all(0 <= fraction <= 1 for fraction in fractions)


def test_what_ends_one_process_is_told_as_one_line(tmp_path):
    work = _work(tmp_path, gpus=2)
    (work.inputs["policy"] / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        run_stage(work)
    assert len(str(caught.value).splitlines()) == 1


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    """SIGKILL of whoever asked for the stage: torchrun and both processes are gone in seconds."""
    _work(tmp_path, gpus=2, rows=400, epochs=200)
    program = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]\n"
        "from pathlib import Path\n"
        "import test_distributed as t\n"
        "from llm.running.launch import run_stage\n"
        f"run_stage(t._work(Path({str(tmp_path)!r}), gpus=2, rows=400, epochs=200))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    mark = f"ROADS_PARENT={parent.pid}"
    progress = tmp_path / "stages" / ".local_rm.partial" / FOLDER / "progress.json"
    try:
        _wait(progress.is_file, 120)
        assert len(_marked(mark)) >= 3  # torchrun and two processes
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _wait(lambda: not _marked(mark), 30)


def _wait(condition, seconds):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.2)


def _marked(mark):
    """Ids of living processes with a variable in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--gpus 2: this machine has 1"):
        run_stage(_work(tmp_path, gpus=2))


def test_memory_that_does_not_suffice_is_told_with_what_helps(tmp_path, monkeypatch):
    def fail(work):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setitem(sys.modules["llm.running.launch"].KINDS, "local_rm", fail)
    with pytest.raises(torch.OutOfMemoryError, match="--micro-tokens 4096 or more") as caught:
        run_stage(_work(tmp_path, gpus=1))
    assert len(str(caught.value).splitlines()) == 1


def test_a_scoring_stage_follows_the_advice_it_gives(tmp_path, monkeypatch):
    def fail(work):
        raise torch.OutOfMemoryError(f"{work.runtime.micro_tokens} tokens")

    monkeypatch.setitem(sys.modules["llm.running.launch"].KINDS, "reference", fail)
    work = _work(tmp_path, gpus=1, kind="reference")
    with pytest.raises(torch.OutOfMemoryError, match=r"--micro-tokens 4096 .*\(8192 tokens\)"):
        run_stage(work)
    advised = replace(work, runtime=replace(work.runtime, micro_tokens=4096))
    with pytest.raises(torch.OutOfMemoryError, match=r"--micro-tokens 2048 .*\(4096 tokens\)"):
        run_stage(advised)


def test_a_stage_that_does_not_train_is_refused_under_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="is no training stage"):
        run_stage(_work(tmp_path, gpus=1, kind="eval_local_rm"))


def test_processes_that_leave_nothing_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ProcessError, match="ended without a result"):
        run_stage(_work(tmp_path, gpus=2))


def test_relative_paths_mean_to_the_processes_what_they_mean_here(tmp_path, monkeypatch):
    """--model FOLDER is opened in each of them; the package is found wherever they are started."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\npwd -P > {tmp_path}/place\necho "$PYTHONPATH" >> {tmp_path}/place\n'
    )
    python.chmod(0o755)
    work = _work(tmp_path / "study", gpus=2)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ProcessError, match="ended without a result"):
        run_stage(work)
    place, path = (tmp_path / "place").read_text().splitlines()
    assert place == str((tmp_path / "here").resolve())
    assert (Path(path.split(os.pathsep)[0]) / "llm" / "running" / "launch.py").is_file()
