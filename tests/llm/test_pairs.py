"""Made pairs: ranked against an oracle of our own, labelled by gold or a judge, written by one."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm import tables
from llm.config import JudgeConfig, OnlineConfig
from llm.data.config import DataConfig
from llm.data.task_file import read_task
from llm.data.tokenize import encode, load_tokenizer
from llm.errors import InputError
from llm.judge import pace
from llm.judge.endpoint import EndpointError
from llm.judge.texts import Preference
from llm.runtime import Runtime
from llm.sampling.sample import Sample
from llm.stages import online, pairs
from llm.stages.work import Work
from tests.llm.misbehaving import KEY, Server, longer
from tests.llm.small_stages import data_stage, random_policy, work_of

LIMITS = DataConfig(n_sft=8, n_pairs=12, n_validation_pairs=6, n_test=4)
TWO = replace(LIMITS, prompt_end="Two-Word TL;DR:", max_completion_tokens=5)


@pytest.fixture
def text(small_tldr: Path, small_tokenizer_file: Path, tmp_path: Path) -> Path:
    return data_stage(tmp_path / "data", small_tldr, LIMITS, small_tokenizer_file)


@pytest.fixture
def task(small_task_file: Path, tmp_path: Path) -> Path:
    limits = DataConfig(n_sft=8, n_pairs=40, n_validation_pairs=20, max_completion_tokens=4)
    return data_stage(tmp_path / "data", small_task_file, limits)


def script(monkeypatch: pytest.MonkeyPatch, data: Path, write: Any) -> list[dict[str, Any]]:
    """A sampler that says what `write(prompt number, k)` does; the calls that it got."""
    tokenizer = load_tokenizer(data / "tokenizer")
    calls: list[dict[str, Any]] = []

    class Scripted:
        def sample(self, prompts: Sequence[Any], *, k: int, **options: Any) -> Any:
            calls.append({"prompts": len(prompts), "k": k, **options})
            return [
                [
                    Sample((*encode(tokenizer, [text])[0], tokenizer.eos_token_id), True)
                    for text in write(p, k)
                ]
                for p in range(len(prompts))
            ]

    monkeypatch.setattr(online, "open_sampler", lambda folder, **_: Scripted())
    return calls


def lcs_f1(a: str, b: str) -> float:
    """ROUGE-L F1 of words, by the plain recursion."""
    x, y = a.lower().split(), b.lower().split()
    table = np.zeros((len(x) + 1, len(y) + 1), dtype=int)
    for i, u in enumerate(x):
        for j, v in enumerate(y):
            same = table[i, j] + 1 if u == v else 0
            table[i + 1, j + 1] = max(same, table[i, j + 1], table[i + 1, j])
    common = table[-1, -1]
    return 2 * common / (len(x) + len(y))


def made(work: Work, part: str = "pairs") -> list[Any]:
    return tables.read_examples(work.folder / f"{part}.parquet")


# --- ranked (Fig. 6) -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["row", "prompt"])
def test_ranked_pairs_are_best_and_worst_by_rouge(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    bank = ["good 0", "for 1 good", "zzz", "much good 2 for", "good 1 for 3 it", "for"]

    def write(p: int, k: int) -> list[str]:
        return [" " + bank[(p + i) % len(bank)] for i in range(k)]

    calls = script(monkeypatch, text, write)
    settings = asdict(OnlineConfig(samples=4, pool=rule))  # type: ignore[arg-type]
    inputs = {"data": text, "policy": tmp_path / "none"}
    work = work_of(tmp_path, inputs, None, how="ranked", samples=4, online=settings, tokens=40)
    metrics = pairs.make(work)
    rows = work.examples("pairs")
    pool = list(dict.fromkeys(row.prompt for row in rows))
    for i, (row, pair) in enumerate(zip(rows, made(work), strict=True)):
        samples = [s.strip() for s in write(i if rule == "row" else pool.index(row.prompt), 4)]
        values = [lcs_f1(row.completions[0], sample) for sample in samples]
        assert pair.completions[0] == samples[int(np.argmax(values))]
        assert lcs_f1(row.completions[0], pair.completions[1]) == min(values)
        assert (pair.prompt_ids, pair.example_id) == (row.prompt_ids, row.example_id)
    sampled = len(rows) if rule == "row" else len(pool)
    assert [call["prompts"] for call in calls][1] == sampled == metrics["pools"]
    assert metrics["pairs"] == metrics["rows"] == 12
    assert len({call["seed"] for call in calls}) == 2
    assert len(tables.read_rows(work.folder / "samples.parquet")) == 4 * sampled


def test_ranked_completions_are_tokenised_as_all_data(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " " + "x" * 40
    script(monkeypatch, text, lambda p, k: [" good", "good ", " bad", "", long][:k])
    inputs = {"data": text, "policy": tmp_path / "none"}
    work = work_of(tmp_path, inputs, None, how="ranked", samples=5)
    pairs.make(work)
    tokenizer = load_tokenizer(text / "tokenizer")
    eos = tokenizer.eos_token_id
    for pair in made(work):
        assert pair.completions[0] == "good"
        assert pair.completion_ids[0] == (*encode(tokenizer, [" good"])[0], eos)
        assert all(ids[-1] == eos and eos not in ids[:-1] for ids in pair.completion_ids)
        whole = [tokenizer.decode(ids[:-1]).strip() for ids in pair.completion_ids]
        assert whole == list(pair.completions)  # what was judged, however many tokens it takes


def test_identical_samples_are_dropped_and_counted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"data": text, "policy": tmp_path / "none"}
    script(monkeypatch, text, lambda p, k: [" one"] * k if p % 3 else [" one", " two"])
    work = work_of(tmp_path / "some", inputs, None, how="ranked", samples=2)
    metrics = pairs.make(work)
    assert (metrics["pairs"], metrics["dropped"]) == (4, 8)
    card = json.loads((work.folder / "card.json").read_text())
    assert card["parts"]["pairs"]["dropped"] == {"identical texts": 8}
    assert card["parts"]["validation_pairs"]["rows"] == 6
    script(monkeypatch, text, lambda p, k: [" one"] * k)
    work = work_of(tmp_path / "all", inputs, None, how="ranked", samples=2)
    with pytest.raises(InputError, match="no pair could be made of 12 rows"):
        pairs.make(work)


def test_ranked_on_a_task_is_by_its_gold_reward(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no completion of the task loses to what is one, and is counted."""
    exact = read_task(task / "task.json")
    bank = [exact.completion_text(leaf) for leaf in range(len(exact.leaves))]

    def write(p: int, k: int) -> list[str]:
        off = ["0 1 0 1"] if p % 2 else ["0", "1"] * 2 if p % 8 == 0 else []
        return [*off, *(bank[(p + 3 * i) % len(bank)] for i in range(k))][:k]

    script(monkeypatch, task, write)
    inputs = {"data": task, "policy": tmp_path / "none"}
    work = work_of(tmp_path, inputs, None, how="ranked", samples=4)
    metrics = pairs.make(work)
    assert metrics["invalid_samples"] == 20 + 4 * 5
    card = json.loads((work.folder / "card.json").read_text())
    assert card["parts"]["pairs"]["dropped"] == {pairs.NO_COMPLETION: 5}
    rows = [(i, row) for i, row in enumerate(work.examples("pairs")) if i % 8]
    for (i, row), pair in zip(rows, made(work), strict=True):
        prompt = exact.prompts.index(row.post_id)
        leaves = [bank.index(text) for text in write(i, 4) if text in bank]
        rewards = exact.reward[prompt, leaves]
        best, worst = (bank[leaves[j]] for j in (rewards.argmax(), rewards.argmin()))
        assert pair.completions == (best, "0 1 0 1" if i % 2 else worst)


def test_what_the_branch_reads_and_what_its_evaluation_keeps(text: Path, tmp_path: Path) -> None:
    """The made parts replace the data's; the data stage still holds the preferred completions."""
    words = json.loads((text / "vocabulary.json").read_text())
    policy = random_policy(tmp_path / "policy", words)
    inputs = {"data": text, "policy": policy}
    files = []
    for name in ("first", "again"):
        work = work_of(tmp_path / name, inputs, None, how="ranked", samples=3)
        pairs.make(work)
        names = ("pairs.parquet", "validation_pairs.parquet", "samples.parquet", "card.json")
        files.append([(work.folder / file).read_bytes() for file in names])
    assert files[0] == files[1]
    later = work_of(tmp_path / "later", {"data": text, "made": work.folder}, 0)
    original = work.examples("validation_pairs")
    assert later.examples("pairs") == made(work)
    assert later.examples("validation_pairs") == made(work, "validation_pairs") != original
    assert later.examples("test") == work.examples("test")


# --- narrow (Fig. 8) -----------------------------------------------------------------------------


def test_narrow_labels_follow_the_gold_reward() -> None:
    """P(first) = sigmoid(r1 - r2): certain far apart, a coin at a tie, one label a row by seed."""
    n = 4000
    texts = [("a", "b")] * n
    far = pairs._bradley_terry([(50.0, -50.0)] * n, texts, 1)
    assert set(far) == {("a", "b")}
    near = Counter(pairs._bradley_terry([(1.0, 0.0)] * n, texts, 1))
    assert near["a", "b"] / n == pytest.approx(1 / (1 + np.exp(-1)), abs=0.03)
    mirrored = pairs._bradley_terry([(0.0, 1.0)] * n, texts, 1)
    assert Counter(mirrored)["a", "b"] / n == pytest.approx(1 / (1 + np.exp(1)), abs=0.03)
    mixed = [(1.0, 1.0), (None, 0.0), (0.0, None), (None, None)]
    texts = [("a", "a"), ("?", "b"), ("a", "?"), ("?", "!")]
    wanted = [pairs.SAME, ("b", "?"), ("a", "?"), pairs.NO_COMPLETION]
    assert pairs._bradley_terry(mixed, texts, 1) == wanted


def test_narrow_on_a_task_draws_two_samples_a_row(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, task, lambda p, k: [f"0 {p % 2} 1", f"0 0 {p // 2 % 2}"])
    inputs = {"data": task, "policy": tmp_path / "none"}
    settings = asdict(OnlineConfig(samples=4, temperature=1.0, pool="prompt"))
    work = work_of(tmp_path, inputs, None, how="narrow", samples=2, tokens=4, online=settings)
    metrics = pairs.make(work)
    assert metrics["samples"] == 2 * metrics["rows"] == 80  # two a row, whatever the pool rule
    assert (metrics["pairs"], metrics["dropped"]) == (30, 10)
    for pair in made(work):
        assert pair.completions[0] != pair.completions[1]


@dataclass
class Bill:
    asked: int


class FakeJudge:
    """Scores by a rule; two-word summaries by number, some of them unreadable."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.asked = rule, []

    def __enter__(self) -> FakeJudge:
        return self

    def __exit__(self, *_: object) -> None: ...

    def prefer(self, rows: Sequence[Any], report: Any) -> list[Preference]:
        self.asked += rows
        report(1.0)
        return [Preference(self.rule(row)) for row in rows]

    def two_words(self, posts: Sequence[str], n: int, report: Any) -> list[list[str | None]]:
        report(1.0)
        title = [post.split("TITLE: Title ")[1].split("\n")[0] for post in posts]
        return [[None if t == "3" and i == 1 else f"t{t} d{i}" for i in range(n)] for t in title]

    def bill(self) -> Bill:
        return Bill(len(self.asked))


def test_narrow_on_text_is_what_the_judge_prefers(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split and unreadable verdicts and identical samples are no preference."""
    script(monkeypatch, text, lambda p, k: [f" s{p}", " s0"])
    scores = {1: 0.5, 2: None, 3: 0.0}
    judge = FakeJudge(lambda row: scores.get(int(row.first[1:]), 1.0))
    monkeypatch.setattr(pairs.judge, "open_judge", lambda work: judge)
    inputs = {"data": text, "policy": tmp_path / "none"}
    work = work_of(tmp_path, inputs, None, how="narrow", samples=2, judge={})
    metrics = pairs.make(work)
    assert [pair.completions for pair in made(work)] == [
        ("s0", "s3"),
        *[(f"s{i}", "s0") for i in range(4, 12)],
    ]
    card = json.loads((work.folder / "card.json").read_text())
    dropped = {"identical texts": 1, "split verdicts": 1, "unreadable verdicts": 1}
    assert card["parts"]["pairs"]["dropped"] == dropped
    assert metrics["judge_asked"] == 11 + 5 == card["judge"]["judge_asked"]
    rows = work.examples("pairs")
    assert judge.asked[-1].post == rows[11].prompt


# --- two words (Fig. 5) --------------------------------------------------------------------------


def test_two_word_pairs_are_written_and_labelled_by_the_judge(
    small_tldr: Path,
    small_tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_stage(tmp_path / "data", small_tldr, TWO, small_tokenizer_file)
    judge = FakeJudge(lambda row: 0.0)
    monkeypatch.setattr(pairs.judge, "open_judge", lambda work: judge)
    reports: list[float] = []
    work = replace(
        work_of(tmp_path, {"data": data}, None, how="two_word", samples=0, judge={}, tokens=5),
        report=reports.append,
    )
    metrics = pairs.make(work)
    rows = work.examples("pairs")
    assert metrics["rows"] == len(rows)
    lost = any("TITLE: Title 3\n" in row.prompt for row in rows)  # its second draw is unreadable
    found = made(work)
    assert metrics["pairs"] == len(found) == len(rows) - lost
    assert metrics["dropped"] == lost
    texts = [text for pair in found for text in pair.completions]
    assert len(set(texts)) == len(texts)  # rows of one prompt get draws of their own
    for pair in found:
        first, second = (int(text.split(" d")[1]) for text in pair.completions)
        assert first == second + 1  # the judge prefers the second of the two
        assert pair.prompt.endswith("Two-Word TL;DR:")
        assert pair.completion_ids[0][-1] == 0
    test = made(work, "test")
    originals = work.examples("test")
    assert [e.prompt for e in test] == [e.prompt for e in originals]
    assert all(e.completions[0].endswith(" d0") for e in test)
    assert reports == sorted(reports)
    assert reports[-1] == 1.0
    card = json.loads((work.folder / "card.json").read_text())
    assert card["parts"]["test"] == {"rows": 4, "references": 4, "dropped": {}}


def test_a_test_post_without_summary_is_left_out_and_counted(
    small_tldr: Path,
    small_tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_stage(tmp_path / "data", small_tldr, TWO, small_tokenizer_file)
    work = work_of(tmp_path, {"data": data}, None, how="two_word", samples=0, judge={}, tokens=5)
    missing = work.examples("test")[2].prompt

    class Silent(FakeJudge):
        def two_words(self, posts: Sequence[str], n: int, report: Any) -> list[list[str | None]]:
            found = super().two_words(posts, n, report)
            return [[None] * n if p == missing else f for p, f in zip(posts, found, strict=True)]

    monkeypatch.setattr(pairs.judge, "open_judge", lambda work: Silent(lambda row: 1.0))
    pairs.make(work)
    assert len(made(work, "test")) == 3
    assert missing not in {example.prompt for example in made(work, "test")}
    card = json.loads((work.folder / "card.json").read_text())
    assert card["parts"]["test"]["dropped"] == {pairs.UNWRITTEN: 1}

    class Mute(FakeJudge):
        def two_words(self, posts: Sequence[str], n: int, report: Any) -> list[list[str | None]]:
            found = super().two_words(posts, n, report)
            return found if n > 1 else [[None] for _ in posts]

    monkeypatch.setattr(pairs.judge, "open_judge", lambda work: Mute(lambda row: 1.0))
    with pytest.raises(InputError, match="no reference for 4 test posts"):
        pairs.make(work)


def test_a_real_endpoint_is_never_asked_twice(
    small_tldr: Path,
    small_tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over HTTP: cut short, the stage keeps the answers; the next run asks for the rest alone."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(pace, "FIRST_WAIT", 0.01)
    data = data_stage(tmp_path / "data", small_tldr, TWO, small_tokenizer_file)
    with Server(_answers()) as server:
        runtime = Runtime(base_url=server.url, retries=2, concurrency=1)
        work = replace(
            work_of(
                tmp_path,
                {"data": data},
                None,
                how="two_word",
                samples=0,
                tokens=5,
                judge=asdict(JudgeConfig(model="gpt-4o")),
            ),
            runtime=runtime,
        )
        server.faults.extend([""] * 9 + ["500"] * 30)
        with pytest.raises(EndpointError, match="kept"):
            pairs.make(work)
        server.faults.clear()
        metrics = pairs.make(work)
        asked = Counter(server.prompts)
        assert metrics["judge_asked"] == sum(server.answered.values()) < sum(asked.values())
        before = len(server.prompts)
        first = [file.read_bytes() for file in sorted(work.folder.glob("*.parquet"))]
        assert pairs.make(work)["pairs"] == metrics["pairs"]
        assert len(server.prompts) == before
        assert [file.read_bytes() for file in sorted(work.folder.glob("*.parquet"))] == first
    assert metrics["pairs"] + metrics["dropped"] == 12
    for pair in made(work):
        assert len(pair.completions[0]) > len(pair.completions[1])


def _answers() -> Any:
    """A judge that prefers the longer one, and writes two words, longer every time."""
    written = itertools.count(1)

    def answer(prompt: str) -> str:
        if "### Summary A:" in prompt:
            return longer(prompt)
        return f"Summary: a{'b' * next(written)} dog"

    return answer
