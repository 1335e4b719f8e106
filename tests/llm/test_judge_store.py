"""The store of answers: whole lines or none, one asker a question, whatever dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llm.judge.cost import MILLION, dollars, estimate, prompt_tokens
from llm.judge.store import Answer, Question, Store
from llm.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
QUESTION = Question("m", 0.0, 200, "which?")


def answer(key: str, text: str = "Preferred: A") -> Answer:
    return Answer(key, text, "m-1", 5, 2, "stop", "2026-01-01T00:00:00+00:00", "stage")


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"temperature": 0.5}, {"max_tokens": 9}, {"prompt": "who?"}, {"draw": 1}],
)
def test_every_part_of_a_question_is_in_its_key(change: dict) -> None:
    assert replace(QUESTION, **change).key != QUESTION.key
    assert replace(QUESTION, temperature=0).key == QUESTION.key


def test_what_is_appended_is_found_by_all(tmp_path: Path) -> None:
    a, b = Store(tmp_path, "org/m"), Store(tmp_path, "org/m")
    odd = "\u2028 \udcff \r\n \x00 Zürich"
    for store, key in ((a, "0" * 64), (b, "1" * 64)):
        store.append(answer(key, odd))
    for store in (a, b):
        found = store.find(["0" * 64, "1" * 64, "2" * 64])
        assert found == {"0" * 64: answer("0" * 64, odd), "1" * 64: answer("1" * 64, odd)}
        assert store.ignored == 0
        store.close()
    assert Store(tmp_path, "org_m").path != a.path


def test_a_torn_last_line_is_cut_off_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, "m")
    store.append(answer("0" * 64))
    store.append(answer("1" * 64))
    store.close()
    whole = store.path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole)):
        store.path.write_bytes(whole[:cut])
        caplog.clear()
        again = Store(tmp_path, "m")
        assert set(again.find(["0" * 64, "1" * 64])) == {"0" * 64}
        assert "torn last line" in caplog.text
        again.append(answer("1" * 64))
        again.close()
        assert store.path.read_bytes() == whole


def test_a_line_that_is_no_answer_is_ignored_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["{", "[]", "null", '{"key": 1}', "\x00\x00", json.dumps(vars(answer("0" * 64)))]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    store = Store(tmp_path, "m")
    with caplog.at_level(logging.WARNING):
        assert set(store.find(["0" * 64])) == {"0" * 64}
    assert store.ignored == 5
    assert "is ignored" in caplog.text
    store.close()


@pytest.mark.parametrize("short", [True, False])
def test_a_full_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    store, write = Store(tmp_path, "m"), os.write
    store.append(answer("0" * 64))
    before = store.path.read_bytes()

    def full(file: int, data: bytes) -> int:
        if short:
            return write(file, data[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="o space left"):
            store.append(answer("1" * 64))
    assert store.path.read_bytes() == before
    store.append(answer("1" * 64))
    assert set(store.find(["0" * 64, "1" * 64])) == {"0" * 64, "1" * 64}
    store.close()


def test_a_claim_shuts_out_every_other_store_until_it_ends(tmp_path: Path) -> None:
    a, b = Store(tmp_path, "m"), Store(tmp_path, "m")
    with a.claim(QUESTION.key) as mine, b.claim(QUESTION.key) as theirs:
        assert mine
        assert not theirs
        with b.claim(replace(QUESTION, draw=1).key) as other:
            assert other
    with b.claim(QUESTION.key) as mine:
        assert mine
    a.close()
    b.close()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path; from llm.judge.store import Store\n"
        f"s = Store(Path({str(tmp_path)!r}), 'm')\n"
        f"with s.claim({QUESTION.key!r}) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        store = Store(tmp_path, "m")
        with store.claim(QUESTION.key) as mine:
            assert not mine
        other.kill()
        other.wait()
        with store.claim(QUESTION.key) as mine:
            assert mine
        store.close()


def test_threads_append_whole_lines(tmp_path: Path) -> None:
    stores = [Store(tmp_path, "m"), Store(tmp_path, "m")]
    keys = [f"{i:064x}" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stores[i % 2].append(answer(keys[i])), range(200)))
    for store in stores:
        assert set(store.find(keys)) == set(keys)
        assert store.ignored == 0
        store.close()
    assert len(stores[0].path.read_text().splitlines()) == 200


def test_an_estimate_is_counts_times_prices() -> None:
    runtime = Runtime(price_in=2.0, price_out=8.0)
    one = estimate(1000, 500, False, runtime, tokens_per_answer=50)
    assert (one.questions, one.tokens_in, one.tokens_out) == (1000, 500_000, 50_000)
    assert one.dollars == pytest.approx(1.0 + 0.4)
    both = estimate(1000, 500, True, runtime, tokens_per_answer=50)
    assert both.dollars == pytest.approx(2 * one.dollars)
    assert dollars(MILLION, 0, runtime) == 2.0
    assert prompt_tokens(400, 40) - prompt_tokens(300, 30) == pytest.approx(120)
