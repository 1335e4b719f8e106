"""Outputs that cannot be written are refused before any work, by every command alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from theory.__main__ import main
from theory.errors import InputError
from theory.outputs import check_output

TASK = Path(__file__).parents[2] / "llm" / "data" / "shipped" / "task.json"
COMMANDS = {
    "check": (["check"], "--json", "theory.claims.base.run_claim"),
    "task": (["task"], "--out", "theory.commands.task.make_task"),
    "forecast": (["forecast", "fig3", "--task", str(TASK)], "--out", "theory.toy.simulate"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_work_is_done_for_a_file_that_cannot_be_written(name, tmp_path, monkeypatch, capsys):
    arguments, option, work = COMMANDS[name]
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work has started"))
    (tmp_path / "file").write_text("in the way")
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "out.json", "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ):
        assert main([*arguments, option, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {option} {path}")
        assert words in error
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_there_is_left_alone_until_it_is_replaced(tmp_path):
    path = tmp_path / "made" / "out.json"
    check_output(path, "--out")
    assert list(path.parent.iterdir()) == []
    path.write_text("old")
    check_output(path, "--out")
    assert path.read_text() == "old"
    with pytest.raises(InputError, match="is a folder"):
        check_output(path.parent, "--out")
