"""Whether an output can be written, asked before the work and not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from theory.errors import InputError


def check_output(path: Path, option: str) -> None:
    """Raises InputError if `path` is a folder or its place cannot be written.

    The folder is made if it is missing; every file in it is left alone.
    """
    try:
        if path.is_dir():
            raise InputError(f"{option} {path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial"):
            pass
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror}") from error


def check_apart(output: Path, source: Path, option: str) -> None:
    """Raises InputError if `output` is what is read: the file `source`, or in the folder `source`.

    Links are followed, so that no other name hides the same file.
    """
    out, read = output.resolve(), source.resolve()
    if out == read:
        raise InputError(f"{option} {output} is the input itself; choose another place")
    if read.is_dir() and read in out.parents:
        raise InputError(f"{option} {output} lies in the folder that is read; choose another place")
