"""The benchmark of shared prompts: its arithmetic, and that it runs at a small shape."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.errors import InputError
from llm.models.shapes import neox

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_peer_agrees_with_ours_and_the_picture_is_drawn(tmp_path: Path) -> None:
    """A peer whose losses or scores are not ours would end the run."""
    record, picture = tmp_path / "sharing.json", tmp_path / "sharing.png"
    small = ["--shape", "tiny", "--lengths", "drawn", "--repeats", "1", "--pairs", "2"]
    done = start("benchmarks/llm_sharing.py", *small, "--prompts", "1", "--json", str(record))
    assert done.returncode == 0, done.stderr[-3000:]
    body = json.loads(record.read_text())
    cases = {line["case"].split(",")[0] for line in body["rows"]}
    assert cases == {"DPO step", "reward step", "score by reward", "score by log-prob"}
    for line in body["rows"]:
        measured = line["ms"] is not None and math.isfinite(line["ms"]["median"])
        assert measured or "GiB" in line["note"]
    assert len(body["figures"]["curve"]) == 10
    done = start("benchmarks/draw_sharing.py", str(record), "--out", str(picture))
    assert done.returncode == 0, done.stderr[-3000:]
    assert picture.stat().st_size > 10_000


def test_what_is_not_there_is_said_at_once() -> None:
    done = start("benchmarks/llm_sharing.py", "--shape", "tiny", ROADS_TLDR_DIR="/nowhere")
    assert done.returncode == 2
    assert "--lengths real: /nowhere" in done.stderr


def test_operations_are_those_of_the_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand for two completions of one prompt; sharing takes the prompt once."""
    monkeypatch.syspath_prepend(FOLDER)
    count = importlib.import_module("llm_sharing").operations
    shape = neox(4, 3, 2, 10)

    def body(tokens: int, seen: int) -> int:
        return 3 * (24 * 16 * tokens + 4 * 4 * seen)

    group = [[2, 1]]
    logits = 2 * 4 * 10 * 3
    shared = body(8, 15 + (10 + 3) + (5 + 1))
    assert count(shape, [5], group, shared=True) == (shared, logits)
    assert count(shape, [5], group, shared=False) == (body(13, 2 * 15 + 13 + 6), logits)


def test_the_floor_leaves_the_second_logits_out_and_the_ceiling_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    sharing = importlib.import_module("llm_sharing")
    work = sharing.Work(sharing.Options(shape="tiny", lengths="drawn"))
    text = sharing.Row((5, 6, 7), ((1, 2), (3, 0)))
    (body, head), (every, _) = (
        sharing.operations(work.shape, [3], [[2, 2]], shared=shared) for shared in (True, False)
    )
    floor, ceilings = sharing.floor_and_ceilings(work, "DPO step", [text])
    assert floor == 3 * body + 3 * head
    assert ceilings[sharing.PLAIN] == pytest.approx((3 * every + 4 * head) / (3 * body + 4 * head))
    floor, ceilings = sharing.floor_and_ceilings(work, "score by reward", [text])
    assert (floor, ceilings[sharing.PLAIN]) == (body, every / body)
    _, ceilings = sharing.floor_and_ceilings(work, "score by log-prob", [text])
    all_logits = every + head * 10 / 4  # of two rows of five tokens
    assert ceilings[sharing.ALL_LOGITS] == pytest.approx(all_logits / (body + head))
    with pytest.raises(AssertionError, match="texts of one prompt"):
        sharing.floor_and_ceilings(work, "DPO step", [text, text])


def test_real_texts_are_of_distinct_posts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    sharing = importlib.import_module("llm_sharing")
    try:
        rows = sharing.real_rows(64, 50304)
    except InputError as error:
        pytest.skip(str(error))
    assert len({row.prompt for row in rows}) == len(rows) == 64
