"""The store of a judge's answers: asked once, kept for every stage and process of a study.

One JSON object a line, appended under a lock of the file, so that a reader sees whole lines or, at
the end, one that a kill has torn. A torn end is cut off when the file is next opened, and said.
Before a question is asked it is claimed (a lock of one byte of another file, at a place that its
key names), so that two processes never ask the same; the system frees the claims of a dead one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)
SAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Question:
    """What is asked of whom, and how; draw: which of several independent answers is meant."""

    model: str
    temperature: float
    max_tokens: int
    prompt: str
    draw: int = 0

    @property
    def key(self) -> str:
        """sha256 (hex) of everything that decides the answer's distribution, and the draw."""
        parts = [self.model, float(self.temperature), self.max_tokens, self.prompt]
        text = json.dumps(parts + [self.draw] * bool(self.draw))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back. refused: why the endpoint would not answer this very question, else None."""

    key: str
    answer: str
    model: str  # that answered, as the endpoint names it
    tokens_in: int | None  # None: the endpoint does not count
    tokens_out: int | None
    finish: str | None
    date: str  # UTC, ISO 8601
    asker: str  # the stage that asked
    refused: str | None = None


class Store:
    """The answers of one model in one study folder; safe for threads and processes."""

    def __init__(self, folder: Path, model: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = SAFE.sub("_", model)
        if name != model:  # two names must not meet in one file
            name += "-" + hashlib.sha256(model.encode()).hexdigest()[:8]
        self.path = folder / f"{name}.jsonl"
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._claims = os.open(folder / f".{name}.claims", os.O_RDWR | os.O_CREAT, 0o644)
        self._mutex = threading.Lock()
        self._read = 0  # bytes
        self._wanted: set[str] = set()
        self._known: dict[str, Answer] = {}
        self.ignored = 0  # whole lines that are no answer

    def find(self, keys: Collection[str]) -> dict[str, Answer]:
        """The answers that are there already; only those ever asked for are kept in memory."""
        with self._locked():
            if not self._wanted.issuperset(keys):
                self._wanted |= set(keys)
                self._read = self.ignored = 0
            self._refresh()
            return {key: self._known[key] for key in keys if key in self._known}

    def append(self, answer: Answer) -> None:
        """Write an answer whole, or not at all (a full disk raises OSError and leaves no trace)."""
        line = (json.dumps(asdict(answer)) + "\n").encode()
        with self._locked():
            self._refresh()
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    raise OSError(28, f"no space left for an answer in {self.path}")
            except OSError:
                os.ftruncate(self._file, self._read)
                raise
            self._read += len(line)
            self._known[answer.key] = answer

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold the right to ask a question; False if another process holds it."""
        place = int(key[:15], 16)
        try:
            self._byte_lock(fcntl.F_WRLCK, place)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            self._byte_lock(fcntl.F_UNLCK, place)

    def close(self) -> None:
        """Make what was written outlive a power failure, and let go of the files."""
        os.fsync(self._file)
        os.close(self._file)
        os.close(self._claims)

    def _byte_lock(self, kind: int, place: int) -> None:
        """An open-file-description lock: other stores of this process are shut out as well."""
        lock = struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0)
        fcntl.fcntl(self._claims, fcntl.F_OFD_SETLK, lock)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _refresh(self) -> None:
        """Read what was appended since; under the lock an end without its newline is torn."""
        size = os.fstat(self._file).st_size
        if size == self._read:
            return
        if size < self._read:  # someone shortened it by hand
            self._read = self.ignored = 0
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    log.warning("%s: cut off %d bytes of a torn last line", self.path, len(line))
                    os.ftruncate(self._file, self._read)
                    return
                self._take(line)
                self._read += len(line)

    def _take(self, line: bytes) -> None:
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):
            self.ignored += 1
            log.warning("%s: a line that is no answer is ignored", self.path)
            return
        if answer.key in self._wanted:
            self._known.setdefault(answer.key, answer)
