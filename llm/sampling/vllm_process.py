"""vLLM's worker processes: which python, which GPUs; started, watched and always ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llm.errors import InputError
from llm.runtime import Runtime

WORKER = Path(__file__).with_name("vllm_worker.py")
QUIET = {  # nothing is asked of the network, and nothing told to it
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a schedule that does not depend on timing
}
FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


class SamplerError(RuntimeError):
    """A worker died, hung or gave an answer that does not fit the request."""


def run_workers(
    runtime: Runtime,
    folders: Sequence[Path],
    *,
    patience: float,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Run a worker on every request folder, at once; the first that fails ends the others.

    patience: seconds without a sign of life from any of them, loading and compiling included, after
    which they count as hung. report: prompts done so far. Raises SamplerError.
    """
    gpus = gpus_of_workers(runtime, os.environ)[: len(folders)]
    with _workers(runtime.vllm_python or sys.executable, folders, gpus) as running:
        last_sign, seen = time.monotonic(), [_progress(folder) for folder in folders]
        while any(worker.poll() is None for worker in running):
            _check(running, folders)
            signs = [_progress(folder) for folder in folders]
            if signs != seen:
                seen, last_sign = signs, time.monotonic()
                report(sum(done for done, _ in signs))
            if time.monotonic() - last_sign > patience:
                raise SamplerError(f"vLLM gave no sign of life for {patience:g} seconds")
            time.sleep(0.1)
        _check(running, folders)


def require_vllm(runtime: Runtime) -> None:
    """Raise InputError unless the environment that shall sample has vLLM."""
    python = runtime.vllm_python or sys.executable
    hint = (
        "install it in an environment of its own (python -m venv .venv-vllm, then "
        ".venv-vllm/bin/pip install vllm==0.31.0) and name its python (--vllm-python)"
    )
    try:
        found = subprocess.run([python, "-P", "-c", FIND], capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"--vllm-python {python}: cannot be run ({error}); {hint}") from error
    if found.returncode == 1 and not found.stderr:
        raise InputError(f"{python} has no vllm; {hint}")
    if found.returncode:
        last = found.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(f"--vllm-python {python}: not a working python ({' '.join(last)}); {hint}")


def gpus_of_workers(runtime: Runtime, environment: Mapping[str, str]) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None (as it is) where this process is shown no GPU.

    Raises InputError if the workers need more GPUs than CUDA_VISIBLE_DEVICES names.
    """
    each, workers = runtime.tensor_parallel, runtime.data_parallel
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is not None and not shown.strip():
        return [None] * workers
    names = [str(i) for i in range(each * workers)] if shown is None else shown.split(",")
    if len(names) < each * workers:
        raise InputError(
            f"tensor_parallel = {each} times data_parallel = {workers} GPUs are asked for, but "
            f"CUDA_VISIBLE_DEVICES = {shown}"
        )
    return [",".join(names[i * each : (i + 1) * each]).strip() for i in range(workers)]


@contextmanager
def _workers(
    python: str, folders: Sequence[Path], gpus: Sequence[str | None]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Each leads a group of its own, which ends with this block and with this process."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for folder, visible in zip(folders, gpus, strict=True):
            shown = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
            with (folder / "log").open("wb") as log:
                running.append(_start(python, folder, {**os.environ, **QUIET, **shown}, log))
        yield running
    finally:
        for worker in running:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            assert worker.stdin is not None
            worker.stdin.close()


def _start(
    python: str, folder: Path, environment: Mapping[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [python, "-P", str(WORKER), str(folder)],  # -P: this package's modules stay out of its path
        stdin=subprocess.PIPE,  # never written to: it closes when this process ends
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
    )


def _check(running: Sequence[subprocess.Popen[bytes]], folders: Sequence[Path]) -> None:
    for worker, folder in zip(running, folders, strict=True):
        if worker.poll():
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
            error = SamplerError(f"vLLM failed: {_cause(log, worker.returncode)}")
            error.add_note("\n".join(log.splitlines()[-60:]))
            raise error


def _cause(log: str, code: int) -> str:
    """The last error that the log names, or how the process ended."""
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"
    lines = [re.sub(r"^(\[rank\d+\]:|\(\w+ pid=\d+\))\s*", "", line) for line in log.splitlines()]
    lines = [line.strip() for line in lines if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [f"exit status {code}"])[-1]


def _progress(folder: Path) -> tuple[int, int]:
    """(prompts done, changes at every sign of life); zeros before the first."""
    try:
        file = folder / "progress"
        return int(file.read_text().split()[0]), file.stat().st_mtime_ns
    except (OSError, IndexError):
        return 0, 0
