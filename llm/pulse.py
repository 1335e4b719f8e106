"""The sign of life of a stage being run: a small file in its unfinished folder, written again.

Who watches (the progress bar, `status`) needs no queue and no connection to who runs: the file says
which process, on which machine, how far. It is removed when the stage ends, however it ends; a kill
leaves it behind, and then it tells of a process that is gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

PULSE = "running.json"
EVERY = 0.5  # seconds between looks at whether there is progress to write
SILENCE = 60.0  # seconds after which a process on another machine counts as gone


@dataclass(frozen=True)
class Pulse:
    """Who runs a stage, how far it is (0 to 1), and when that was written (seconds, Unix)."""

    host: str
    pid: int
    born: str | None  # start of the process, in the kernel's ticks: pids come back
    progress: float
    time: float

    @property
    def alive(self) -> bool:
        """Whether the process is there: looked up on this machine, by silence on another one."""
        if self.host != socket.gethostname():
            return time.time() - self.time < SILENCE
        state, born = _process(self.pid)
        return state not in (None, "Z", "X") and born == self.born


def _process(pid: int) -> tuple[str | None, str | None]:
    """(state letter, start in ticks) of a process here; None, None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None, None
    return fields[0], fields[19]


def read_pulse(folder: Path) -> Pulse | None:
    """The pulse in an unfinished stage's folder, None if there is none."""
    try:
        return Pulse(**json.loads((folder / PULSE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class _Beat:
    """Writes the file when progress was made, and every quarter of SILENCE anyway."""

    def __init__(self, folder: Path) -> None:
        self.path, self.progress, self.stop = folder / PULSE, 0.0, threading.Event()
        self.born = _process(os.getpid())[1]
        self.written = (-1.0, 0.0)  # progress, time

    def write(self) -> None:
        """A full disk must not stop the stage for the sake of its pulse."""
        now = time.time()
        pulse = Pulse(socket.gethostname(), os.getpid(), self.born, self.progress, now)
        partial = self.path.with_name(PULSE + ".partial")
        with suppress(OSError):
            partial.write_text(json.dumps(asdict(pulse)), encoding="utf-8")
            partial.replace(self.path)
        self.written = (self.progress, now)

    def run(self) -> None:
        while not self.stop.wait(EVERY):
            progress, when = self.written
            if progress != self.progress or time.time() - when > SILENCE / 4:
                self.write()


@contextmanager
def beating(folder: Path) -> Iterator[Callable[[float], None]]:
    """Keep a pulse in `folder` meanwhile; yields what takes the progress (0 to 1)."""
    beat = _Beat(folder)
    beat.write()
    thread = threading.Thread(target=beat.run, daemon=True)
    thread.start()

    def report(fraction: float) -> None:
        beat.progress = fraction

    try:
        yield report
    finally:
        beat.stop.set()
        thread.join()
        for name in (PULSE, PULSE + ".partial"):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
