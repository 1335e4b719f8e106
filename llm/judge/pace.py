"""When the next request may go out: a rate limit that all processes of a study share, and waits."""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event, Lock

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between tries: doubled, up to the longest
PATIENCE = 600.0  # a Retry-After beyond this many seconds is no pause but an end


class Pace:
    """Slots in time, in a file: at most so many requests a minute, none while all must pause."""

    def __init__(self, path: Path, per_minute: int | None) -> None:
        self.interval = 60.0 / per_minute if per_minute else 0.0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._mutex = Lock()

    def wait(self, stop: Event) -> None:
        """Take the next slot and sleep until it comes, or until `stop` is set."""
        slot = self._move(lambda now, free: (max(now, free), max(now, free) + self.interval))
        stop.wait(max(0.0, slot - time.time()))

    def pause(self, seconds: float) -> None:
        """No request of any thread or process before so many seconds have passed."""
        self._move(lambda now, free: (0.0, max(free, now + seconds)))

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _move(self, step) -> float:
        """step(now, first free slot) -> (result, first free slot), under the lock."""
        with self._mutex:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                now = time.time()
                result, free = step(now, self._free(now))
                os.pwrite(self._file, f"{free:020.6f}".encode(), 0)
                return result
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _free(self, now: float) -> float:
        """The stored slot; one that no pause and no queue explains (a changed clock) is now."""
        try:
            free = float(os.pread(self._file, 20, 0))
        except ValueError:
            return now
        return free if free - now < PATIENCE + 1000 * self.interval else now


def backoff(key: str, attempt: int) -> float:
    """Seconds before try `attempt` + 1: doubled each time, times 0.5 to 1, seeded by the key."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt, 30))
    return longest * (0.5 + 0.5 * random.Random(f"{key} {attempt}").random())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait (a number, or a date); None if it does not say."""
    value = headers.get("retry-after-ms")
    if value is not None and _number(value) is not None:
        return _number(value) / 1000  # type: ignore[operator]
    value = headers.get("retry-after")
    if value is None:
        return None
    if (seconds := _number(value)) is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _number(text: str) -> float | None:
    """A finite number >= 0, else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None
