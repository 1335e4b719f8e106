"""`sample` and `judge`: a policy's completions, and the verdicts on two files of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llm import __main__ as command
from llm import tables
from llm.data.config import DataConfig
from llm.judge import pace
from tests.llm.misbehaving import KEY, Server
from tests.llm.small_stages import data_stage, random_policy
from tests.llm.stub_vllm import write_stub


@pytest.fixture(scope="module")
def stages(tmp_path_factory, shared_task_file) -> tuple[Path, Path]:
    """(a policy of random weights, its data stage)."""
    folder = tmp_path_factory.mktemp("stages")
    limits = DataConfig(n_sft=4, n_pairs=4, n_validation_pairs=4, n_test=4, max_completion_tokens=4)
    data = data_stage(folder / "data", shared_task_file, limits)
    words = {"size": 32, "eos": 0, "pad": 1}
    return random_policy(folder / "policy", words), data


def _sample(stages, out: Path, *more: str) -> list[str]:
    policy, data = stages
    return ["sample", str(policy), "--data", str(data), "--out", str(out), *more]


def test_samples_are_written_and_follow_from_the_seed(stages, tmp_path, capsys):
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        line = _sample(stages, tmp_path / out, "--k", "3", "--temperature", "1.0", "--seed", seed)
        assert command.main([*line, "--max-tokens", "4"]) == 0
    a, b, c = (pq.read_table(tmp_path / n / "samples.parquet").to_pylist() for n in "abc")
    assert len(a) == 4 * 3
    assert a == b
    assert a != c
    assert {row["sample_index"] for row in a} == {0, 1, 2}
    assert all(1 <= row["tokens"] <= 4 for row in a)
    assert command.main(_sample(stages, tmp_path / "a")) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "/no/such/data"], "/no/such/data: holds no test.parquet"),
        (["--k", "0"], "must be positive"),
        (["--temperature", "nan"], "must be positive"),
        (["--prompts", "-1"], "--prompts a positive number"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--max-tokens", "100000"], "(--max-tokens)"),
    ],
)
def test_what_cannot_be_sampled_is_refused(stages, tmp_path, capsys, more, message):
    assert command.main(_sample(stages, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_policy_of_fewer_words_and_a_file_in_the_way_are_refused(stages, tmp_path, capsys):
    policy, data = stages
    less = random_policy(tmp_path / "less", {"size": 3, "eos": 0, "pad": 1})
    assert (
        command.main(["sample", str(less), "--data", str(data), "--out", str(tmp_path / "o")]) == 2
    )
    assert "words, " in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command.main(_sample((policy, data), tmp_path / "file")) == 2
    assert "is a file" in capsys.readouterr().err


def _file(path: Path, *samples: str) -> Path:
    rows = [
        {"prompt_id": f"p{i}", "prompt": f"a post {i}", "sample": text, "reference": "middling"}
        for i, text in enumerate(samples)
    ]
    tables.write_rows(path, rows)
    return path


def test_two_files_are_judged_and_nothing_is_asked_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROADS_KEY", KEY)
    long = _file(tmp_path / "long.parquet", "a long summary", "another long one")
    short = _file(tmp_path / "short.parquet", "short", "shorter")
    line = ["judge", str(long), str(short), "--model", "gpt-4o", "--out", str(tmp_path / "out")]
    with Server() as server:
        line += ["--base-url", server.url, "--key-name", "ROADS_KEY"]
        assert command.main(line) == 0
        asked = len(server.prompts)
        assert command.main(line) == 0
        assert len(server.prompts) == asked == 4  # two prompts in both orders
    assert "win_rate: 1.0" in capsys.readouterr().out
    scores = pq.read_table(tmp_path / "out" / "stages" / "judge" / "scores.parquet").to_pylist()
    assert [row["win_rate"] for row in scores] == [1.0, 1.0]


@pytest.mark.parametrize(
    "url", [f"http://user:{KEY}@127.0.0.1:9/v1", f"http://127.0.0.1:9/v1?api-key={KEY}"]
)
def test_a_secret_in_the_environments_address_is_nowhere(tmp_path, capfd, caplog, monkeypatch, url):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    whole = _file(tmp_path / "whole.parquet", "a", "b")
    line = ["judge", str(whole), "--model", "gpt-4o", "--out", str(tmp_path / "out")]
    assert command.main(line) == 2
    said = capfd.readouterr()
    assert "OPENAI_BASE_URL" in said.err
    assert KEY not in said.err + said.out + caplog.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given", ["abcdef0123456789deadbeef", "sk-secret", "ROADS_KEY\n", "_KEY", "Key", "1KEY", ""]
)
def test_what_is_no_variables_name_is_refused_and_not_repeated(tmp_path, capsys, given):
    line = ["judge", "a.parquet", "--model", "m", "--out", str(tmp_path), "--key-name", given]
    with pytest.raises(SystemExit) as ended:
        command.main(line)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "is the name of an environment variable" in " ".join(said.err.split())
    if len(given) > 8:  # shorter ones are parts of other words
        assert given.strip() not in "".join((said.out + said.err).split())


def test_what_cannot_be_judged_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ROADS_NO_KEY", raising=False)
    whole = _file(tmp_path / "whole.parquet", "a", "b")
    part = _file(tmp_path / "part.parquet", "a")
    (tmp_path / "torn.parquet").write_text("no parquet")
    tables.write_rows(tmp_path / "lacks.parquet", [{"prompt_id": "p0", "prompt": "x"}])
    end = ["--model", "gpt-4o", "--out", str(tmp_path / "out"), "--key-name", "ROADS_NO_KEY"]
    for files, message in (
        ([whole, part], "has no sample 0 of prompt 'p1'"),
        ([tmp_path / "torn.parquet"], "cannot be read"),
        ([tmp_path / "lacks.parquet"], "lacks sample, reference"),
        ([tmp_path / "none.parquet"], "cannot be read"),
        ([whole], "ROADS_NO_KEY"),
    ):
        assert command.main(["judge", *map(str, files), *end]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "stands there twice"),
        (
            lambda rows: [{**row, "sample": None} for row in rows],
            "sample of prompt 'p0' is no text",
        ),
        (lambda rows: [{**row, "reference": 3} for row in rows], "reference of prompt 'p0' is no"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused_before_anybody_is_asked(
    tmp_path, capsys, change, message
):
    rows = [{"prompt_id": "p0", "prompt": "x", "sample": "a", "reference": "b"}]
    tables.write_rows(tmp_path / "rows.parquet", change(rows))
    line = ["judge", str(tmp_path / "rows.parquet"), "--model", "m", "--out", str(tmp_path / "out")]
    assert command.main([*line, "--base-url", "http://127.0.0.1:9/v1"]) == 2
    assert message in capsys.readouterr().err


# --- what fails outside --------------------------------------------------------------------------


def _one_line(capsys) -> str:
    """What was said on stderr: one line, and no traceback."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_an_endpoint_that_fails_is_one_line_and_what_was_answered_is_kept(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ROADS_KEY", KEY)
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)
    long = _file(tmp_path / "long.parquet", "a long summary", "another long one")
    line = ["judge", str(long), "--model", "gpt-4o", "--out", str(tmp_path / "out")]
    line += ["--key-name", "ROADS_KEY", "--retries", "1", "--concurrency", "1"]
    with Server() as server:
        line += ["--base-url", server.url]
        server.faults.extend(["", "500", "500"])
        assert command.main(line) == 1
        assert "after 2 tries (1 of 4 answers are kept; run again for the rest)" in _one_line(
            capsys
        )
        assert not list((tmp_path / "out").rglob("*.parquet*"))
        assert command.main(line) == 0
        assert max(server.answered.values()) == 1


def test_a_vllm_that_fails_is_one_line_and_writes_nothing(stages, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUB", "error")
    line = _sample(stages, tmp_path / "out", "--max-tokens", "4", "--sampler", "vllm")
    assert command.main([*line, "--vllm-python", str(write_stub(tmp_path))]) == 1
    assert "vLLM failed: " in _one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_program_itself_keeps_its_traceback(stages, tmp_path, monkeypatch):
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("llm.stages.evaluate.draw", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        command.main(_sample(stages, tmp_path / "out", "--max-tokens", "4"))
