"""Outputs that cannot be written are refused before any work, by every command alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from theory.__main__ import main
from theory.errors import InputError
from theory.outputs import check_apart, check_output

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


def test_no_file_beside_the_output_is_touched(tmp_path):
    other = tmp_path / "out.json.partial"
    other.write_text("mine")
    check_output(tmp_path / "out.json", "--out")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(other.name, "mine")]


def test_an_output_is_never_what_is_read(tmp_path):
    source = tmp_path / "in.json"
    source.write_text("read")
    (tmp_path / "link.json").symlink_to(source)
    for output in (source, tmp_path / "link.json", tmp_path / "x" / ".." / "in.json"):
        with pytest.raises(InputError, match="the input itself"):
            check_apart(output, source, "--json")
    for output in (tmp_path / "out.json", tmp_path / "deep" / "out.json"):
        with pytest.raises(InputError, match="the folder that is read"):
            check_apart(output, tmp_path, "--json")
    check_apart(tmp_path / "out.json", source, "--json")
    check_apart(tmp_path.parent / "out.json", tmp_path, "--json")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "out.json"), 1, "out.json: No space left"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_no_traceback_where_the_run_is_broken_off(raised, code, words, monkeypatch, capsys):
    def run(self):
        raise raised

    monkeypatch.setattr("theory.commands.task.Task.run", run)
    assert main(["task", "--out", "task.json"]) == code
    assert words in capsys.readouterr().err
