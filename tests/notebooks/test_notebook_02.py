"""Notebook 02 runs from its first cell to its last; an assertion that fails would stop it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "02_proper_learning.py"


def test_the_notebook_runs_as_a_script(run: Callable[..., Any]) -> None:
    done = run(NOTEBOOK)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_assertion_that_fails_would_stop_it(tmp_path: Path, run: Callable[..., Any]) -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert text.count("assert capacity == 21\n") == 1
    path = tmp_path / "broken.py"
    broken = text.replace("assert capacity == 21\n", "assert capacity == 99\n")
    path.write_text(broken, encoding="utf-8")
    done = run(path)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr
