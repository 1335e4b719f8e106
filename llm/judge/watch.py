"""Run a command until standard input ends or the parent dies; then end its whole process group.

A script by itself (standard library alone): the parent holds the other end of standard input, so
that even a parent that is killed takes the command with it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

GRACE = 15.0  # seconds between asking it to end and ending it


def main(command: list[str]) -> int:
    """The command's exit code, or 0 where it was ended."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while child.poll() is None:
            ready, _, _ = select.select([sys.stdin.fileno()], [], [], 0.5)
            ended = ready and not os.read(sys.stdin.fileno(), 1)
            if ended or os.getppid() != parent:
                return 0
        return child.returncode
    finally:
        end_group(child)


def end_group(child: subprocess.Popen) -> None:
    """Ask the command to end its own parts; then end whatever of its group is still there."""
    child.terminate()
    limit = time.monotonic() + GRACE
    try:
        while time.monotonic() < limit:
            child.poll()
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
