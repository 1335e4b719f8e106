"""The verdicts of a stage: what it writes and counts; a kill, two at once, a local server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llm import tables
from llm.config import JudgeConfig
from llm.errors import InputError
from llm.judge import EndpointError, open_judge, pace, serve, texts
from llm.judge.store import Store
from llm.protocol.stage import Stage
from llm.runtime import Runtime
from llm.stages import judged
from llm.stages.work import Work
from tests.llm.misbehaving import KEY, Server, longer

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("misbehaving.py")
SAMPLES = tables.SAMPLE.append(judged.SCORE.field("sample_index"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def prompt(i: int) -> str:
    return f"SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: post {i}.\n\nTL;DR:"


def rows_of(samples: list[list[str]], reference: str = "five!") -> list[dict[str, Any]]:
    """Rows of samples.parquet: the samples of each prompt, all against one reference."""
    return [
        {"prompt_id": f"p{i}", "prompt": prompt(i), "sample": text, "reference": reference}
        | {"sample_index": j, "ids": [1], "tokens": 1, "ended": True}
        for i, each in enumerate(samples)
        for j, text in enumerate(each)
    ]


def work_of(
    study: Path,
    url: str,
    rows: list[dict[str, Any]],
    *,
    name: str = "judge_dpo",
    settings: dict[str, Any] | None = None,
    **judge: Any,
) -> Work:
    """A stage of verdicts over rows that a stage of samples has written."""
    samples = study / "stages" / f"samples_of_{name}"
    samples.mkdir(parents=True, exist_ok=True)
    tables.write_rows(samples / "samples.parquet", rows, SAMPLES)
    folder = study / "stages" / f".{name}-0-abc.partial"
    folder.mkdir(exist_ok=True)
    config = JudgeConfig(**{"model": "gpt-4o", **judge})
    stage = Stage(
        name, "verdicts", 0, (), {"judge": asdict(config), "two_word": False, **(settings or {})}, 1
    )
    runtime = Runtime(base_url=url, concurrency=2, retries=1, timeout=10.0)
    return Work(stage, {"samples": samples}, folder, "", None, runtime)


def test_a_stage_writes_verdicts_scores_and_counts(server: Server, tmp_path: Path) -> None:
    def some(asked: str) -> str:
        return "no idea" if "post 3." in asked else longer(asked)

    server.answer = some
    samples = [["x"], ["longest"], ["five!"], ["y"], ["\n### z"]]
    work = work_of(tmp_path, server.url, rows_of(samples))
    metrics = judged.make(work)
    scores = tables.read_rows(work.folder / "scores.parquet")
    assert [row["win_rate"] for row in scores] == [0.0, 1.0, 0.5, None, 1.0]
    assert [row["win_rate_one_order"] for row in scores] == [0.0, 1.0, 0.5, None, 1.0]
    assert [row["id"] for row in scores] == [f"p{i}" for i in range(5)]
    assert {row["sample_index"] for row in scores} == {0}
    dollars = 8 * (100 * 2.5 + 10 * 10) / 1e6
    assert metrics == {
        "win_rate": pytest.approx(2.5 / 4),
        "win_rate_one_order": pytest.approx(2.5 / 4),
        "comparisons": 5,
        "invalid": 1,
        "invalid_answers": 2,
        "identical": 1,
        "escaped": 1,
        "position_bias": 0.5,
        "agreement": 1.0,
        "asked": 8,
        "reused": 0,
        "refused": 0,
        "tokens_in": 800,
        "tokens_out": 80,
        "dollars": pytest.approx(dollars),
        "judge_models": 1,
    }
    verdicts = tables.read_rows(work.folder / "verdicts.parquet")
    assert [(row["id"], row["order"]) for row in verdicts] == [
        (f"p{i}", order) for i in (0, 1, 3, 4) for order in ("ab", "ba")
    ]
    assert [row["preferred"] for row in verdicts] == ["B", "A", "A", "B", None, None, "A", "B"]
    assert {row["model"] for row in verdicts} == {"gpt-4o-2024-08-06"}
    assert {row["answer"] for row in verdicts[4:6]} == {"no idea"}
    assert all(row["asked_here"] and row["date"].startswith("20") for row in verdicts)
    stored = Store(tmp_path / "verdicts", "gpt-4o")
    keys = {row["question_sha256"] for row in verdicts}
    assert set(stored.find(keys)) == keys
    stored.close()


def test_position_bias_is_the_share_of_a(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: "Comparison: x.\nPreferred: B"
    metrics = judged.make(work_of(tmp_path, server.url, rows_of([["x"], ["y"], ["z"]])))
    assert (metrics["position_bias"], metrics["agreement"]) == (0.0, 0.0)
    assert metrics["win_rate"] == 0.5


def test_no_readable_answer_is_no_win_rate(server: Server, tmp_path: Path) -> None:
    server.answer = lambda asked: ""
    metrics = judged.make(work_of(tmp_path, server.url, rows_of([["x"], ["y"]])))
    for name in ("win_rate", "win_rate_one_order", "position_bias", "agreement"):
        assert metrics[name] is None
    assert metrics["invalid"] == 2


def test_a_pools_equal_samples_are_asked_once(server: Server, tmp_path: Path) -> None:
    samples = [["a", "longest", "a", "five!"], ["a", "a", "a", "a"]]
    work = work_of(tmp_path, server.url, rows_of(samples))
    metrics = judged.make(work)
    assert len(server.prompts) == 2 * 3
    scores = tables.read_rows(work.folder / "scores.parquet")
    assert [row["sample_index"] for row in scores] == [0, 1, 2, 3] * 2
    assert [row["win_rate"] for row in scores] == [0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert metrics["asked"] == 6
    other = judged.make(work_of(tmp_path, server.url, rows_of(samples), name="judge_sft"))
    assert (other["asked"], other["reused"], other["dollars"]) == (0, 6, 0.0)
    assert len(server.prompts) == 6


def test_two_word_summaries_have_their_own_question(server: Server, tmp_path: Path) -> None:
    rows = rows_of([["hungry dog"]], reference="dog ate")
    for name, settings in (("a", {"two_word": True}), ("b", {"two_word": False})):
        judged.make(work_of(tmp_path, server.url, rows, name=name, settings=settings))
    assert ["two-word" in asked for asked in server.prompts] == [True, True, False, False]
    made = work_of(tmp_path, server.url, rows, name="c")
    del made.stage.settings["two_word"]  # type: ignore[attr-defined]
    made.stage.settings["how"] = "two_word"  # type: ignore[index]
    with open_judge(made) as judge:
        assert judge.two_word


def test_a_sample_without_a_reference_is_refused(server: Server, tmp_path: Path) -> None:
    rows = rows_of([["x"], ["y"]])
    rows[1]["reference"] = None
    with pytest.raises(InputError, match="prompt p1: its reference is None"):
        judged.make(work_of(tmp_path, server.url, rows))
    assert server.prompts == []


def test_no_key_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    work = work_of(tmp_path, "https://judge.example/v1", rows_of([["x"]]))
    with pytest.raises(InputError, match="no OPENAI_API_KEY"):
        judged.make(work)
    assert list(work.folder.iterdir()) == []
    assert not (tmp_path / "verdicts").exists()


def test_a_judge_that_goes_away_loses_nothing(server: Server, tmp_path: Path) -> None:
    work = work_of(tmp_path, server.url, rows_of([[f"{i}"] for i in range(20)]))
    server.faults.extend([""] * 15)
    server.always = "503"
    with pytest.raises(EndpointError, match="of 40 answers are kept; run again for the rest"):
        judged.make(work)
    assert list(work.folder.iterdir()) == []
    server.always = ""
    metrics = judged.make(work)
    assert metrics["asked"] == 40
    assert metrics["dollars"] == pytest.approx(40 * 350 / 1e6)
    assert set(server.answered.values()) == {1}


# --- processes -----------------------------------------------------------------------------------

CODE = """
import json, sys
from pathlib import Path
from llm.config import JudgeConfig
from llm.judge import ModelJudge, Comparison
from llm.runtime import Runtime
url, folder, asker, n = sys.argv[1:5]
rows = [Comparison(f"post {i}", str(i), "five!") for i in range(int(n))]
runtime = Runtime(base_url=url, concurrency=4, retries=1, timeout=30.0)
with ModelJudge(JudgeConfig(model="m"), runtime, Path(folder), asker=asker) as judge:
    print(json.dumps([each.score for each in judge.prefer(rows)]), judge.bill().asked)
"""


def process(server: Server, folder: Path, asker: str, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, server.url, str(folder), asker, str(n)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_until(true: Any, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


def test_a_killed_judge_resumes_without_asking_twice(server: Server, tmp_path: Path) -> None:
    server.answer_limit = 11  # then requests hang, as at an endpoint that is slow
    with process(server, tmp_path, "stage", 20) as first:
        wait_until(lambda: lines(tmp_path / "m.jsonl") == 11 and len(server.prompts) >= 15)
        first.kill()
    assert first.returncode == -9
    server.answer_limit = None
    with process(server, tmp_path, "stage", 20) as second:
        out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert out.split("] ")[0] + "]" == json.dumps([0.0] * 20)
    assert int(out.split("] ")[1]) == 40  # with those of the run that was killed
    assert len(server.answered) == 40
    assert set(server.answered.values()) == {1}
    assert len(server.prompts) <= 40 + 4  # what hung at the kill was asked again
    assert lines(tmp_path / "m.jsonl") == 40


def test_two_processes_share_the_questions(server: Server, tmp_path: Path) -> None:
    def slowly(asked: str) -> str:
        time.sleep(0.02)
        return longer(asked)

    server.answer = slowly
    with process(server, tmp_path, "x", 25) as x, process(server, tmp_path, "y", 25) as y:
        outs = [each.communicate(timeout=60)[0] for each in (x, y)]
    assert [each.returncode for each in (x, y)] == [0, 0]
    assert len({out.split("] ")[0] for out in outs}) == 1
    asked = [int(out.split("] ")[1]) for out in outs]
    assert sum(asked) == len(server.prompts) == len(set(server.prompts)) == 50
    assert lines(tmp_path / "m.jsonl") == 50


# --- a server of one's own -----------------------------------------------------------------------


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "judge model"
    folder.mkdir()
    for name, content in (
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '{"chat_template": "x"}'),
        ("model.safetensors", "weights"),
    ):
        (folder / name).write_text(content)
    return folder


def fake(folder: Path, name: str, port: int, runtime: Runtime) -> list[str]:
    """In place of vLLM."""
    return [sys.executable, str(SERVER), str(port)]


def test_a_local_model_is_served_asked_and_ended(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr(serve, "command", fake)
    started: list[str] = []
    serving = serve.serving

    def noted(*args: Any) -> Any:
        started.append(str(args[0]))
        return serving(*args, build=fake)

    monkeypatch.setattr(serve, "serving", noted)
    work = work_of(tmp_path, "", rows_of([["x"]]), model=f"local:{model_folder}")
    with open_judge(work) as judge:
        assert started == []  # nothing is started before a question is new
        row = texts.Comparison("post", "longer", "x")
        assert judge.prefer([row])[0].score == 1.0
        assert judge._endpoint is not None
        port = int(judge._endpoint.place.split(":")[2].split("/")[0])
        assert listening(port)
    assert not listening(port)
    assert started == [str(model_folder)]
    with open_judge(work) as again:
        assert again.prefer([row])[0].score == 1.0
        assert (again.bill().asked, again.bill().dollars) == (2, 0.0)
    assert len(started) == 1
    assert (tmp_path / "verdicts" / f"{serve.folder_name(model_folder)}.jsonl").exists()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_killed_judge_takes_its_server_along(model_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llm.judge import serve\n"
        "from llm.runtime import Runtime\n"
        f"fake = lambda *a: [sys.executable, {str(SERVER)!r}, str(a[2])]\n"
        "with serve.serving(Path(sys.argv[1]), Runtime(), Path(sys.argv[2]), fake) as url:\n"
        "    print(url, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(model_folder), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().split(":")[2].split("/")[0])
        assert listening(port)
        parent.kill()
    wait_until(lambda: not listening(port), 30)


def test_a_server_that_does_not_start_is_an_error(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> list[str]:
        return [sys.executable, "-c", "print('CUDA out of memory'); raise SystemExit(3)"]

    said = r"local judge .*judge model: vLLM's server ended: CUDA out of memory \(log: .*\.log\)"
    with (
        pytest.raises(EndpointError, match=said),
        serve.serving(model_folder, Runtime(), tmp_path / "verdicts", broken),
    ):
        pass
    monkeypatch.setattr(serve, "START_LIMIT", 0.3)
    with (
        pytest.raises(EndpointError, match="did not start in time"),
        serve.serving(
            model_folder,
            Runtime(),
            tmp_path / "verdicts",
            lambda *_: [sys.executable, "-c", "import time; time.sleep(60)"],
        ),
    ):
        pass


def test_a_local_models_name_is_its_content(model_folder: Path, tmp_path: Path) -> None:
    name = serve.folder_name(model_folder)
    moved = model_folder.rename(tmp_path / "moved")
    assert serve.folder_name(moved) == name
    (moved / "README.md").write_text("x")
    assert serve.folder_name(moved) == name
    (moved / "model.safetensors").write_text("Weights")
    os.utime(moved / "model.safetensors", ns=(1, 1))
    assert serve.folder_name(moved) != name
    runtime = Runtime(vllm_python="/env/bin/python", tensor_parallel=2)
    made = serve.command(moved, "local-x", 8000, runtime)
    assert made[0] == "/env/bin/python"
    assert made[made.index("--model") + 1] == str(moved)
    assert made[made.index("--tensor-parallel-size") + 1] == "2"
    assert "--trust-remote-code" not in made


def test_what_the_server_started_ends_as_well(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child = stubborn + f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))"
    outer = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child + chr(10) + 'time.sleep(600)'!r}])\n"
        "time.sleep(600)"
    )
    grace = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from llm.judge import watch\n"
    code = grace + f"watch.GRACE = 0.3; watch.main([sys.executable, '-c', {outer!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as watching:
        assert watching.stdin is not None
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        watching.stdin.close()
        watching.wait(30)
    wait_until(lambda: not alive(pid), 10)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("config.json", "holds no config.json"),
        ("model.safetensors", r"with \*.safetensors"),
        ("tokenizer.json", "holds no tokenizer.json"),
        ("tokenizer_config.json", "no chat template"),
    ],
)
def test_a_folder_that_cannot_judge_is_refused(
    model_folder: Path, tmp_path: Path, gone: str, said: str
) -> None:
    (model_folder / gone).unlink()
    with pytest.raises(InputError, match=said):
        open_judge(work_of(tmp_path, "", [], model=f"local:{model_folder}"))
    with pytest.raises(InputError, match="is no folder"):
        open_judge(work_of(tmp_path, "", [], model="local:/nowhere"))
