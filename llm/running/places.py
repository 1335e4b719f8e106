"""Where stages run on this machine: in this process, or in workers, one for each core or GPU set.

A worker is a process of its own that runs stage after stage (importing torch takes seconds). One
that dies takes its own stage with it and nothing else: a new one starts in its place. Workers end
when their parent does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Protocol

from llm.protocol.stage import Stage
from llm.running.execute import Plan, gpus_of, note_failure, run_stage

POLL = 0.2  # seconds between looks at parents and stages
START = 30.0  # seconds that a new process may take before it says who it is
OVERLAP = 4  # stages without a GPU (the judge's) that run beside those with one
DIED = "its worker died (killed, or out of memory?)"
Place = tuple[str, ...]  # the GPUs of a worker; or ("core 0",), ("no GPU 0",)
Task = Callable[[Plan, Stage], str | None]
Ended = list[tuple[Stage, str | None]]  # what went wrong, or None


class Places(Protocol):
    """Somewhere to run stages. The runner asks for room, starts stages, and hears which ended."""

    def room(self, stage: Stage) -> bool:
        """Whether the stage can start now."""
        ...

    def start(self, stage: Stage) -> None:
        """Start it; its inputs are finished, and there is room."""
        ...

    def ended(self) -> Ended:
        """Those that ended since; waits a moment if none did."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Here:
    """One stage at a time, in this process."""

    def __init__(self, plan: Plan, report: Callable[[str, float], None]) -> None:
        self.plan, self.report = plan, report
        self.done: Ended = []

    def room(self, stage: Stage) -> bool:
        """One at a time."""
        return not self.done

    def start(self, stage: Stage) -> None:
        """Runs it to its end."""
        error = run_stage(self.plan, stage, lambda part: self.report(stage.id, part))
        self.done.append((stage, error))

    def ended(self) -> Ended:
        """The one that was started."""
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        """Nothing to give back."""


class Workers:
    """Worker processes: `jobs` at most, each on one CPU core, or on the GPUs that its stage takes.

    gpus: the names of the GPUs to use (as in CUDA_VISIBLE_DEVICES); none means CPU cores. task:
    what a worker does with a stage.
    """

    def __init__(
        self, plan: Plan, *, jobs: int | None, gpus: tuple[str, ...], task: Task = run_stage
    ) -> None:
        self.plan, self.gpus, self.task = plan, gpus, task
        self.jobs = jobs or (len(gpus) if gpus else max(1, os.cpu_count() or 1))
        self.workers: dict[Place, ProcessPoolExecutor] = {}
        self.pids: dict[Place, Future[int]] = {}
        self.busy: dict[Future[str | None], tuple[Stage, Place]] = {}

    def room(self, stage: Stage) -> bool:
        """Whether a core, or enough GPUs, are free."""
        return self._place(stage) is not None

    def _place(self, stage: Stage) -> Place | None:
        taken = {name for _, place in self.busy.values() for name in place}
        number = gpus_of(stage, self.plan.runtime)
        if not self.gpus:
            return _first(f"core {i}" for i in range(self.jobs) if f"core {i}" not in taken)
        if not number:
            return _first(f"no GPU {i}" for i in range(OVERLAP) if f"no GPU {i}" not in taken)
        free = [gpu for gpu in self.gpus if gpu not in taken]
        running = sum(place[0] in self.gpus for _, place in self.busy.values())
        if len(free) < number or running >= self.jobs:
            return None
        warm = [p for p in self.workers if len(p) == number and set(p) <= set(free)]
        return warm[0] if warm else tuple(free[:number])

    def start(self, stage: Stage) -> None:
        """In a worker that is there, or a new one."""
        place = self._place(stage)
        if place is None:
            raise RuntimeError(f"no room for {stage.id}")
        for other in [p for p in self.workers if p != place and set(p) & set(place)]:
            self.workers.pop(other).shutdown()  # idle, but it holds memory of a GPU
        if place not in self.workers:
            self.workers[place] = self._worker(place)
            self.pids[place] = self.workers[place].submit(os.getpid)
        self.busy[self.workers[place].submit(self.task, self.plan, stage)] = (stage, place)

    def _worker(self, place: Place) -> ProcessPoolExecutor:
        visible = ",".join(place) if self.gpus and place[0] in self.gpus else None
        return ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.getpid(), "" if self.gpus and visible is None else visible),
        )

    def ended(self) -> Ended:
        """Those that ended, within POLL seconds."""
        finished, _ = wait(self.busy, timeout=POLL, return_when=FIRST_COMPLETED)
        found: Ended = []
        for future in finished:
            stage, place = self.busy.pop(future)
            try:
                error = future.result()
            except BrokenProcessPool:
                self.workers.pop(place).shutdown()
                error = DIED
                note_failure(self.plan, stage, DIED)
            found.append((stage, error))
        return found

    def close(self) -> None:
        """Ends the workers, at once if stages still run (an error or Ctrl-C here)."""
        for _, place in self.busy.values():
            self._kill(place)  # else Python itself would wait for the stage, before it exits
        for worker in self.workers.values():
            worker.shutdown(wait=not self.busy, cancel_futures=True)

    def _kill(self, place: Place) -> None:
        """What a worker has started sees that it is gone, and ends as well."""
        with suppress(BrokenProcessPool, ProcessLookupError, CancelledError, TimeoutError):
            os.kill(self.pids[place].result(START), signal.SIGKILL)


def _first(names: object) -> Place | None:
    found = next(iter(names), None)  # type: ignore[call-overload]
    return None if found is None else (found,)


def _start_worker(parent: int, visible: str | None) -> None:
    """Sees its own GPUs alone; ends with the parent, however that ends."""
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named[:count]) if named else tuple(str(i) for i in range(count))
