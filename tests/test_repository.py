"""The tree itself: packages come from here, the README's tree is real, pins are in one file."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["theory", "llm", "paper_figures"])
def test_packages_come_from_this_tree(name):
    """PyPI has another package called llm."""
    module = __import__(name)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / name


def test_every_file_in_the_readmes_tree_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("## Where things are")[1].split("```")[1]
    folder, found = ROOT, 0
    for line in block.strip().splitlines():
        names = re.findall(r"[\w/]+\.py|[\w/]+/(?=\s)", line[:40])
        if not line.startswith(" "):
            folder = ROOT / names[0] if names and names[0].endswith("/") else ROOT
        for name in names:
            place = ROOT if not line.startswith(" ") else folder
            assert (place / name).exists(), f"{line!r} names {name}, which does not exist"
            found += 1
    assert found > 30


def test_versions_are_pinned_in_one_file_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"]]
    needs += [need for extra in project["optional-dependencies"].values() for need in extra]
    assert not [need for need in needs if re.search(r"[=<>~]", need)]
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert not {re.sub(r"\[.*", "", need).lower() for need in needs} - pinned


@pytest.mark.parametrize("package", ["theory", "llm", "paper_figures"])
def test_help_is_quick_and_has_examples(package):
    """--help imports neither jax nor torch, and every subcommand shows an example."""
    code = (
        f"import sys, {package}.__main__ as m\n"
        "heavy = {'jax', 'torch', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
    for file in (ROOT / package / "commands").glob("[!_]*.py"):
        assert "Example" in file.read_text(encoding="utf-8"), file
