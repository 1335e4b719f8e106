"""Notebooks run as scripts, with this checkout's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    """run(path, *arguments): the ended process. strict: RuntimeWarnings are errors."""

    def start(path: Path, *arguments: str, strict: bool = True) -> subprocess.CompletedProcess[str]:
        warnings = ["-W", "error::RuntimeWarning"] if strict else []
        return subprocess.run(
            [sys.executable, *warnings, str(path), *arguments],
            cwd=path.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return start
