"""Whether an output can be written, asked before the work and not after it."""

from __future__ import annotations

from pathlib import Path

from theory.errors import InputError


def check_output(path: Path, option: str) -> None:
    """Raises InputError if `path` is a folder or its place cannot be written.

    The folder is made if it is missing; the file that would be replaced is left alone.
    """
    try:
        if path.is_dir():
            raise InputError(f"{option} {path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror}") from error
