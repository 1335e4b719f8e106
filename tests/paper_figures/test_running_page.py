"""The page for labs: every command exists with the options that it is given."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "running.md"
SCRIPTS = sorted((ROOT / "docs" / "slurm").glob("*.sbatch"))
MODULES = ("llm", "paper_figures", "theory")


def code_of(page: Path) -> str:
    """What stands between fences, with continued lines joined."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        text = "\n".join(re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    return text.replace("\\\n", " ")


def commands(page: Path) -> list[list[str]]:
    """[module, subcommand, *options] of every `python -m` of this project."""
    found = re.findall(
        r"(?:python|torchrun .*) -m ((?:" + "|".join(MODULES) + r") .*)", code_of(page)
    )
    return [shlex.split(line.removesuffix("&").strip(), comments=True) for line in found]


ALL = [command for page in (PAGE, *SCRIPTS) for command in commands(page)]


@cache
def help_of(module: str, subcommand: str) -> str:
    """What the subcommand says of itself."""
    asked = [sys.executable, "-m", module, subcommand, "--help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module} {subcommand} "), "no such subcommand"
    return done.stdout


def unknown(command: list[str]) -> list[str]:
    """The options of a command that its subcommand does not have."""
    module, subcommand, *rest = command
    text = help_of(module, subcommand)
    options = [word for word in rest if word.startswith("--")]
    return [word for word in options if not re.search(rf"{re.escape(word)}(?![\w-])", text)]


def test_the_page_and_the_scripts_hold_commands() -> None:
    assert len(SCRIPTS) == 2
    assert all(commands(page) for page in (PAGE, *SCRIPTS))
    assert {(module, subcommand) for module, subcommand, *_ in ALL} >= {
        ("llm", "study"), ("llm", "status"), ("llm", "compare"), ("paper_figures", "report"),
        ("llm", "train"), ("llm", "data"),
    }  # fmt: skip


@pytest.mark.parametrize("command", ALL, ids=lambda command: " ".join(command)[:60])
def test_every_command_exists_with_its_options(command: list[str]) -> None:
    assert unknown(command) == []


def test_an_option_that_does_not_exist_would_be_found() -> None:
    assert unknown(["llm", "study", "fig3", "--gpus", "8", "--gpu", "8"]) == ["--gpu"]
    with pytest.raises(AssertionError, match="no such subcommand"):
        unknown(["llm", "studies"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_are_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert all((PAGE.parent / link).is_file() for link in links)
    anchors = re.findall(r"\]\(#([^)]+)\)", text)
    headings = {h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(anchors) <= headings


def planned(command: str) -> dict[str, float]:
    """The totals of a dry run with three seeds."""
    asked = [sys.executable, "-m", "llm", *command.split(), "--seeds", "3", "--dry-run", "--json"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["totals"]


@pytest.mark.parametrize("size", ["1.4b", "paper"])
def test_the_quoted_plan_is_what_a_dry_run_prints(size: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    row = re.search(rf"^\| `(study fig3 --preset {size} [^`]*)` \|(.*)$", text, re.MULTILINE)
    assert row is not None
    totals = planned(row[1])
    hours, memory, disk, _ = (cell.strip() for cell in row[2].strip(" |").split("|"))
    kept, _, checkpoint = disk.replace(",", "").partition(" + ")
    shown = [float(hours), float(memory), float(kept), float(checkpoint)]
    names = ("gpu_hours", "peak_gib", "disk_gib", "checkpoint_gib")
    assert shown == [round(totals[name]) for name in names]
    assert f"{totals['questions']:,} questions, {totals['dollars']:.0f} dollars" in row[2]
    if size == "paper":
        assert f"to run: {totals['stages']} stages<br>" in text
        assert f"GPU hours: {totals['gpu_hours']:.0f}<br>" in text
