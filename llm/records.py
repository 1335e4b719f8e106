"""One directory a stage, named by the hash of what decides its content; whole or not there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from llm.errors import InputError
from llm.pulse import PULSE

SCHEMA = 1
RECORD = "record.json"
ERROR = "error.txt"  # of a stage that failed, in its unfinished folder
SAMPLER = "sampler.json"  # what vLLM ran as, in an unfinished folder; then in the record
GRAPH = "graph.json"  # every stage that was asked for, for `status`
IDENTITY = "identity.json"
LOCK = ".lock"
LOCK_TRIES = 20
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "all-roads")


def digest(value: object) -> str:
    """sha256 (hex) of a JSON-ready value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:  # a full disk: give back what was taken
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """JSON of a stored record. Raises InputError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object (keys and values) of a study. Raises InputError naming the file."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: not an object of keys and values, so no study of this version")
    return found


def is_record(path: Path) -> bool:
    """Whether a whole record stands there: a copy or a power cut may leave half of one."""
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def versions() -> dict[str, str]:
    """What ran: Python and the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class StageKey:
    """A stage's name, seed and the hash of its configuration and inputs."""

    name: str
    seed: int | None
    hash: str

    @property
    def directory(self) -> str:
        """The directory's name: dpo-0-1a2b3c4d5e6f."""
        seed = "" if self.seed is None else f"-{self.seed}"
        return f"{self.name}{seed}-{self.hash[:12]}"


class Store:
    """The stage directories of one study folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages = root / "stages"

    def path(self, key: StageKey) -> Path:
        """Where the finished stage stands."""
        return self.stages / key.directory

    def partial(self, key: StageKey) -> Path:
        """Where the stage is being made; survives a kill, so that training can resume."""
        return self.stages / f".{key.directory}.partial"

    def done(self, key: StageKey) -> bool:
        """Whether the stage is finished: its record, which is written last, is there and whole."""
        return is_record(self.path(key) / RECORD)

    def record(self, key: StageKey) -> dict[str, Any]:
        """The finished stage's record."""
        return read_json(self.path(key) / RECORD)

    def finish(self, key: StageKey, record: dict[str, Any]) -> None:
        """Write the record and move the directory into place in one step.

        sampler_versions: of the environment of its own in which vLLM sampled for the stage.
        """
        work = self.partial(key)
        if (work / SAMPLER).exists():
            record = {**record, "sampler_versions": read_json(work / SAMPLER)}
        write_json(work / RECORD, record)
        (work / SAMPLER).unlink(missing_ok=True)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        self._move(key)

    def adopt(self, key: StageKey) -> bool:
        """Finish a stage that was killed after its record was written; whether there was one."""
        work = self.partial(key)
        if not is_record(work / RECORD):
            return False
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        for leftover in (*work.glob(PULSE + "*"), *work.glob(ERROR), *work.glob(SAMPLER)):
            leftover.unlink()
        self._move(key)
        return True

    def _move(self, key: StageKey) -> None:
        if self.path(key).exists():  # a half-copied folder without a record
            shutil.rmtree(self.path(key))
        self.partial(key).replace(self.path(key))


def check_folder(root: Path, identity: dict[str, Any]) -> None:
    """Raise InputError unless the folder is new, empty, or holds a study of this configuration.

    Figures and seeds may be added later; anything else that differs is another study, and the
    message names the first keys that do.
    """
    path = root / IDENTITY
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file, not a folder: choose another --out")
    check_writable(root)
    if path.exists():
        before = read_object(path)
        differing = _differences(before, json.loads(json.dumps(identity)))
        if differing:
            raise InputError(
                f"{root} was made by another configuration ({'; '.join(differing[:3])}): "
                "choose another --out"
            )
        return
    began = (LOCK, IDENTITY + ".partial")  # all that a run leaves which was killed this early
    if root.exists() and any(entry.name not in began for entry in root.iterdir()):
        raise InputError(f"{root} is not empty and holds no study: choose another --out")


def check_writable(root: Path) -> None:
    """Raise InputError unless the folder, or the nearest one above it, may be written to."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{there} is a file, not a folder: choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there} may not be written to: choose another --out")


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Human-readable places at which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in {**old, **new}:
            inner = f"{place}.{key}" if place else key
            found += _differences(old.get(key), new.get(key), inner)
        return found
    return [] if old == new else [f"{place}: {old!r} there, {new!r} now"]


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the study's folder for one process; InputError if another holds it.

    Workers of a killed study end within moments: it waits that long.
    """
    with (root / LOCK).open("w") as stream:
        for attempt in range(LOCK_TRIES + 1):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if attempt == LOCK_TRIES:
                    raise InputError(f"{root} is in use by another study process") from error
                time.sleep(0.1)
        yield
