"""The public names: light to import, all documented, and the examples of docs/api.md run."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import theory

PAGE = Path("docs/api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"^## (.+?)\n\n```python\n(.+?)```\n\n```text\n(.+?)```", PAGE, flags=re.MULTILINE | re.DOTALL
)
HEAVY = ("jax", "numpy", "scipy", "networkx", "matplotlib", "pyarrow", "tyro", "rich")


@pytest.mark.parametrize("statement", ["import theory", "import theory.predictions"])
def test_importing_loads_nothing_heavy(statement):
    program = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_every_name_loads_and_keeps_its_meaning():
    for name in theory.__all__:
        value = getattr(theory, name)
        assert callable(value)
        assert value.__name__ == name
        assert getattr(theory, name) is value  # no submodule has taken its place
        assert value.__doc__
    assert set(theory.__all__) <= set(dir(theory))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = theory.nothing


def test_every_name_has_one_line_in_the_page():
    table = re.findall(r"^\| `(\w+)[^|]*\| .+ \|$", PAGE, flags=re.MULTILINE)
    assert sorted(table) == sorted(theory.__all__)


def test_the_page_has_examples_and_no_code_is_left_out():
    assert len(EXAMPLES) >= 5
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize(("title", "code", "output"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_the_examples_run_and_print_what_they_say(title, code, output):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"docs/api.md: {title}", "exec"), {})
    assert printed.getvalue() == output
