"""Runs a stage in this process, or a training stage in several, one a GPU, under torchrun.

On one node `run_stage` starts them itself and `python -m llm.running.launch` is each of them. On
several nodes torchrun is started by hand, and every process calls `run_stage` for itself. Each
reads the inputs' folders, so that all nodes need the study's folder; the first one writes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from llm.errors import InputError
from llm.protocol.stage import TRAINING, Stage
from llm.records import read_json, write_json
from llm.runtime import Runtime
from llm.stages.kinds import KINDS, Result
from llm.stages.work import Work
from llm.training.train import is_main, processes

FOLDER = "processes"  # below the stage's folder, while several processes run it
STAGE, PROGRESS, RESULT = "stage.json", "progress.json", "result.json"
PARENT = "ROADS_PARENT"  # the process whose end ends the others
POLL = 0.2  # seconds
GRACE = 15.0  # seconds between SIGTERM and SIGKILL


class ProcessError(RuntimeError):
    """What ended a stage in one of its processes, as one line."""


def run_stage(work: Work) -> Result:
    """Run a stage as its runtime asks; raises what it raises, and InputError before any GPU work.

    A training stage takes runtime.gpus processes; under torchrun, those that torchrun started.
    """
    wanted = work.runtime.gpus
    if work.stage.kind not in TRAINING or wanted == 1 or processes() > 1:
        return _run(work)
    there = torch.cuda.device_count()
    if torch.cuda.is_available() and wanted > there:
        raise InputError(f"--gpus {wanted}: this machine has {there}")
    return _run_in_several(work, wanted)


def _run(work: Work) -> Result:
    """One stage in this process. Memory that does not suffice is told with what helps."""
    if processes() > 1:
        if work.stage.kind not in TRAINING:
            raise InputError(f"stage {work.stage.id} is no training stage: run it without torchrun")
        _choose_device()
    try:
        return KINDS[work.stage.kind](work)
    except torch.OutOfMemoryError as error:
        first = next(iter(str(error).splitlines()), "")
        error.args = (f"{_hint(work)} ({first})",)
        raise


def _hint(work: Work) -> str:
    tokens = work.runtime.micro_tokens
    more = " or more --gpus" if work.stage.kind in TRAINING else ""
    return (
        f"the memory of {processes()} GPU(s) does not suffice for {tokens} tokens at a time: "
        f"go on with --micro-tokens {max(1, tokens // 2)}{more} (only rounding changes; "
        "a pass takes one row at least)"
    )


def _choose_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


# --- the process that starts the others ----------------------------------------------------------


def _run_in_several(work: Work, count: int) -> Result:
    folder = work.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / STAGE, _to_json(work))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "-m", "llm.running.launch", str(folder / STAGE)]
    environment = {**os.environ, PARENT: str(os.getpid())}
    environment.setdefault("OMP_NUM_THREADS", "1")
    code = [str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, code))
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(POLL)
                _pass_on(folder / PROGRESS, work.report)
        finally:
            _end(process)
    if process.returncode != 0 or not (folder / RESULT).is_file():
        raise _first_error(folder)
    result = Result(**read_json(folder / RESULT))
    shutil.rmtree(folder)
    return result


def _pass_on(file: Path, report: Callable[[float], None]) -> None:
    if file.is_file():
        report(float(read_json(file)))


def _end(process: subprocess.Popen[bytes]) -> None:
    """torchrun and what it started, at once if this process is interrupted."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _first_error(folder: Path) -> Exception:
    """What went wrong first: where one process fails, the others lose their connection to it."""
    found = [read_json(file) for file in folder.glob("error-*.json")]
    if not found:
        lines = (folder / "output.txt").read_text(errors="replace").strip().splitlines()
        error = ProcessError(f"the processes ended without a result: {lines[-1:] or 'no output'}")
        error.add_note("\n".join(lines[-40:]))
        return error
    first = min(found, key=lambda entry: entry["time"])
    if first["type"] == InputError.__name__:
        return InputError(first["message"])
    error = ProcessError(f"{first['type']}: {first['message']} (process {first['rank']})")
    error.add_note(first["traceback"])
    return error


# --- one of several processes --------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """`python -m llm.running.launch STAGE.json`, started by torchrun."""
    file = Path(arguments[0])
    folder = file.parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    _be_quiet()
    try:
        work = _from_json(read_json(file), _reporter(folder / PROGRESS))
        torch.manual_seed(0)
        result = _run(work)
        if is_main():
            write_json(folder / RESULT, asdict(result))
        return 0
    except Exception as error:
        rank = os.environ.get("RANK", "0")
        entry = {
            "rank": int(rank),
            "time": time.time(),
            "type": type(error).__name__,
            "message": next(iter(str(error).splitlines()), ""),
            "traceback": traceback.format_exc(),
        }
        write_json(folder / f"error-{rank}.json", entry)
        return 1


def _be_quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _reporter(file: Path) -> Callable[[float], None]:
    """Progress of the first process, for the parent; not more often than it looks."""
    last = 0.0

    def report(fraction: float) -> None:
        nonlocal last
        if is_main() and time.monotonic() - last > POLL:
            last = time.monotonic()
            write_json(file, fraction)

    return report


def _end_with_parent() -> None:
    """End when the process that asked for the stage is gone, however it went."""
    parent = os.environ.get(PARENT)
    while parent is not None:
        time.sleep(POLL)
        try:
            os.kill(int(parent), 0)
        except ProcessLookupError:
            os._exit(1)


def _to_json(work: Work) -> dict[str, Any]:
    return {
        "stage": asdict(work.stage),
        "inputs": {role: str(path.resolve()) for role, path in work.inputs.items()},
        "folder": str(work.folder.resolve()),
        "source": work.source,
        "tokenizer": work.tokenizer,
        "runtime": asdict(work.runtime),
    }


def _from_json(entry: dict[str, Any], report: Callable[[float], None]) -> Work:
    stage = Stage(**{**entry["stage"], "inputs": tuple(map(tuple, entry["stage"]["inputs"]))})
    runtime = replace(Runtime(**entry["runtime"]), gpus=1)
    return Work(
        stage,
        {role: Path(path) for role, path in entry["inputs"].items()},
        Path(entry["folder"]),
        entry["source"],
        entry["tokenizer"],
        runtime,
        report,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
