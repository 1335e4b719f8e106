"""Crashes and full disks at every step of writing: whole or not there, resumed, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm import __main__ as command
from llm import records
from llm.records import RECORD, Store, write_json
from llm.running.execute import execute, run_stage
from llm.running.state import save_graph, states
from llm.stages.kinds import KINDS, Result
from tests.llm.fake_stages import plan, stage
from tests.llm.misbehaving import KEY, Server

SCRIPT = Path(__file__).with_name("small_study.py")


class Crash(BaseException):
    """What no `except Exception` catches, as a SIGKILL is."""


STEPS = (
    (Path, "write_text"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (shutil, "rmtree"),
)


def _at_step(monkeypatch, number: int, fail: Callable[[], None]) -> list[str]:
    """Before the `number`-th file operation from now on, `fail`; the names of those that were."""
    seen: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def stepped(*args: Any, **more: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                fail()
            return real(*args, **more)

        monkeypatch.setattr(owner, name, stepped)

    for owner, name in STEPS:
        wrap(owner, name)
    return seen


def _crash() -> None:
    raise Crash


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def _numbers(work: Any) -> Result:
    """A stage that writes two files, counts how often it was computed, and leaves a checkpoint."""
    counter = work.study / "computed"
    computed = int((counter.read_text() if counter.exists() else "") or 0)
    with counter.open("w") as stream:
        stream.write(str(computed + 1))
    (work.folder / "checkpoints").mkdir(exist_ok=True)
    for name in ("a.json", "b.json"):
        write_json(work.folder / name, {"name": name, "numbers": list(range(50))})
    return Result({"loss": 0.5})


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A plan of one stage of the kind above."""
    monkeypatch.setitem(KINDS, "numbers", _numbers)
    found = plan(tmp_path / "out", stage("x", kind="numbers"))
    (tmp_path / "out" / "stages").mkdir(parents=True)
    return found


def _finished(found) -> dict[str, Any]:
    folder = Store(found.root).path(found.keys["x"])
    record = json.loads((folder / RECORD).read_text())
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["a.json", "b.json", RECORD]
    assert record["metrics"] == {"loss": 0.5}
    assert not list((found.root / "stages").glob(".*"))
    return record


def _steps(found, monkeypatch) -> int:
    with monkeypatch.context() as patch:
        seen = _at_step(patch, -1, _crash)
        assert run_stage(found, found.stages[0]) is None
    _finished(found)
    shutil.rmtree(found.root / "stages")
    (found.root / "stages").mkdir()
    return len(seen)


def test_a_crash_before_any_step_of_a_stage_is_made_good(made, monkeypatch):
    """Never a folder that looks done and is not; once the record is written, nothing is redone."""
    total = _steps(made, monkeypatch)
    assert total >= 10
    adopted = 0
    for number in range(1, total + 1):
        (made.root / "computed").unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            _at_step(patch, number, _crash)
            with pytest.raises(Crash):
                execute(made, made.stages[0], lambda fraction: None)
        store, key = Store(made.root), made.keys["x"]
        if store.done(key):
            _finished(made)
        recorded = (store.partial(key) / RECORD).is_file()
        assert run_stage(made, made.stages[0]) is None
        _finished(made)
        adopted += recorded
        if recorded:
            assert (made.root / "computed").read_text() == "1"
        shutil.rmtree(store.path(key))
    assert adopted


def test_a_disk_that_is_full_at_any_step_fails_the_stage_with_its_reason(made, monkeypatch):
    total = _steps(made, monkeypatch)
    reasons = []
    for number in range(1, total + 1):
        with monkeypatch.context() as patch:
            _at_step(patch, number, _full)
            reasons.append(run_stage(made, made.stages[0]))
        store, key = Store(made.root), made.keys["x"]
        assert store.done(key) or reasons[-1]
        assert run_stage(made, made.stages[0]) is None
        _finished(made)
        shutil.rmtree(store.path(key))
    said = [reason for reason in reasons if reason]
    assert len(said) > total / 2  # what only tidies up (the pulse) may fail in silence
    assert all("No space left on device" in reason for reason in said)


def test_json_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"before": 1})
    for number in (1, 2, 3):
        for fail, kind in ((_crash, Crash), (_full, OSError)):
            with monkeypatch.context() as patch:
                _at_step(patch, number, fail)
                try:
                    write_json(path, {"after": number})
                except kind:
                    assert records.read_json(path) == {"before": 1}
                    if kind is OSError:
                        assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
                    continue
                raise AssertionError(f"step {number} was not reached")


def test_a_half_copied_folder_without_a_record_is_made_again(made):
    folder = Store(made.root).path(made.keys["x"])
    folder.mkdir()
    (folder / "a.json").write_text("{")
    assert run_stage(made, made.stages[0]) is None
    _finished(made)


def test_a_torn_record_is_no_record(made):
    """A folder copied by hand, its record cut short, is told apart by `status` and by a run."""
    (made.root / "identity.json").write_text("{}")
    save_graph(made)
    assert run_stage(made, made.stages[0]) is None
    record = Store(made.root).path(made.keys["x"]) / RECORD
    record.write_text(record.read_text()[:20])
    assert [s.state for s in states(made.root)] == ["died"]
    assert command.main(["status", str(made.root)]) == 1
    assert not Store(made.root).done(made.keys["x"])
    assert run_stage(made, made.stages[0]) is None
    assert [s.state for s in states(made.root)] == ["done"]


# --- a disk that is really full ------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 KiB of its own; skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk, monkeypatch):
    monkeypatch.setitem(KINDS, "numbers", _numbers)
    made = plan(small_disk / "out", stage("x", kind="numbers"))
    (made.root / "stages").mkdir(parents=True)
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(b"0" * (free - 4096))
    reason = run_stage(made, made.stages[0])
    assert reason is not None
    assert "No space left on device" in reason
    (small_disk / "filler").unlink()
    assert run_stage(made, made.stages[0]) is None
    (made.root / "computed").unlink()
    _finished(made)


# --- a study killed while it asks the judge ------------------------------------------------------


def test_killed_while_judging_nothing_is_asked_twice(
    tmp_path, monkeypatch, small_tldr, small_tokenizer_file
):
    """SIGKILL when three of eight answers are there; the second run asks for the other five."""
    monkeypatch.setenv("ROADS_KEY", KEY)
    out = tmp_path / "out"
    line = [sys.executable, str(SCRIPT), "train", "judge_sft", "--preset", "test", "--jobs", "1"]
    line += ["--data", str(small_tldr), "--tokenizer", str(small_tokenizer_file)]
    line += ["--out", str(out), "--judge", "gpt-4o", "--key-name", "ROADS_KEY"]
    with Server() as server:
        server.answer_limit = 3
        line += ["--base-url", server.url]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(line, start_new_session=True, stdout=log, stderr=log)
            end = time.monotonic() + 240
            while sum(server.answered.values()) < 3 or not list(out.glob("verdicts/*")):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            time.sleep(1.0)  # the third answer is stored
            process.kill()
            process.wait()
            dead = {s.id: s.state for s in states(out)}
            assert dead == {"data": "done", "sft": "done", "eval_sft": "done", "judge_sft": "died"}
            server.answer_limit = None
            ended = subprocess.run(line, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
        assert len(server.answered) == sum(server.answered.values()) == 8
    (file,) = out.glob("stages/judge_sft-*/record.json")
    metrics = json.loads(file.read_text())["metrics"]
    assert metrics["invalid"] == 0
    assert KEY not in "".join(p.read_text(errors="ignore") for p in out.rglob("*") if p.is_file())
