"""Two notebooks run from the first cell to the last, and the assertions in their cells hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BREAKS = {"all_roads": (r"== 1 \+ 2 \+ 4 \+ 8\n", "== 99\n"), "01_theorems": (r"== 7\n", "== 99\n")}
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.py" for name in BREAKS]  # the others have their own test


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_as_a_script(path: Path, run: Callable[..., Any]) -> None:
    done = run(path, strict=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_assertion_that_fails_would_stop_it(
    path: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    text = path.read_text(encoding="utf-8")
    broken, changed = re.subn(*BREAKS[path.stem], text)
    assert changed == 1
    path = tmp_path / "broken.py"
    path.write_text(broken, encoding="utf-8")
    done = run(path, strict=False)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr
