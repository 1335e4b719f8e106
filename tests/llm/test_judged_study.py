"""Text and a model judge from `study` to `compare`: every judged number is made again by hand."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from llm import __main__ as command
from llm.judge import pace
from llm.models.build import load_reward_model
from llm.protocol import presets
from llm.running.state import states
from tests.llm.conftest import make_rows, write_lines
from tests.llm.misbehaving import KEY, Server
from tests.llm.small_study import small
from theory.predictions import (
    Measurement,
    Prediction,
    Relation,
    load_measurements,
    load_verdicts,
    save,
)

SEEDS = (0, 1)
COUNTS = (1, 2, 4)  # the last one is the pool's size
ARMS = {
    "fig3": ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo"),
    "fig5": ("sft", "dpo", "online_dpo_dpo"),
    "fig8": ("sft", "dpo", "online_dpo_sft", "online_dpo_dpo"),
}
BRANCH = {"fig3": "", "fig5": ".two_word", "fig8": ".narrow"}
DIFFERENCES = {
    "fig3": (("online_dpo_sft", "dpo"), ("online_dpo_dpo", "dpo_2x"), ("online_dpo_dpo", "dpo")),
    "fig5": (("online_dpo_dpo", "dpo"),),
    "fig8": (("online_dpo_dpo", "dpo"), ("online_dpo_sft", "dpo")),
}
SOURCES, MODELS = ("sft", "dpo"), ("global_rm", "local_rm", "dpo_rm")
EVERY_ARM = [(figure, arm) for figure, arms in ARMS.items() for arm in arms]
WORDS = ("dog", "long letter", "money", "love work", "zq zq")
# In turn, then none; what is refused for good ("filtered") is a comparison.
FAULTS = ("500", "drop", "filtered", "wait 0.05", "html", "no choices")
PREDICTED: tuple[tuple[str, str, Relation, float | None], ...] = (
    ("fig3", "win_rate[dpo]", "greater", None),
    ("fig3", "win_rate[sft] - win_rate[dpo]", "less", None),  # of no arm pair that is compared
    ("fig3", "win_rate[online_dpo_sft] - win_rate[dpo]", "greater", None),
    ("fig5", "gap[fig3] - gap[fig5]", "greater", None),
    ("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", "equal", 0.01),
    ("fig8", "win_rate[online_dpo_dpo] - win_rate[dpo]", "less", None),
    ("fig10", "win_rate[best_of_4_dpo_local_rm] - win_rate[best_of_4_dpo_dpo_rm]", "less", None),
    # the best of one is the same sample whatever the reward model, at every seed
    ("fig10", "win_rate[best_of_1_sft_global_rm]", "greater", None),
    ("fig10", "win_rate[best_of_1_sft_local_rm]", "less", None),
    ("fig10", "win_rate[best_of_1_sft_local_rm] - win_rate[best_of_1_sft_dpo_rm]", "equal", 0.05),
)


# --- the judge -----------------------------------------------------------------------------------


def preferred(post: int, a: str, b: str) -> str | None:
    """The longer text, give or take 60 letters; "A" where they are close; None: unreadable.

    Of some posts nothing can be read, of some one order alone.
    """
    if post % 9 == 3 or (post % 9 == 5 and a < b):
        return None
    first, second = (len(t) + zlib.crc32(f"{post} {t}".encode()) % 60 for t in (a, b))
    return "A" if first > second - 10 else "B"


@dataclass
class Judge:
    """Answers both kinds of question, and keeps the two-word summaries in the order of asking."""

    written: dict[int, list[str]] = field(default_factory=dict)

    def __call__(self, prompt: str) -> str:
        post = post_of(prompt)
        if "### Summary A:" not in prompt:
            return self._write(post)
        a, rest = prompt.split("\n### Summary A:\n")[1].split("\n\n### Summary B:\n")
        letter = preferred(post, a, rest.split("\n\n### Instructions:\n")[0])
        return "Both." if letter is None else f"Comparison: of length.\nPreferred: {letter}"

    def _write(self, post: int) -> str:
        drawn = self.written.setdefault(post, [])
        words = WORDS[zlib.crc32(f"{post} {len(drawn)}".encode()) % len(WORDS)]
        drawn.append("one word too many" if (post + len(drawn)) % 6 == 5 else words)
        return f"Summary: {drawn[-1]}"


def post_of(prompt: str) -> int:
    return int(re.findall(r"Post (\d+) says", prompt)[0])


# --- one study of four figures -------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A study that ended, its server closed."""

    out: Path
    line: list[str]
    code: int
    server: Server
    judge: Judge

    def rows(self, stage: str, table: str) -> list[dict[str, Any]]:
        return pq.read_table(self.folder(stage) / f"{table}.parquet").to_pylist()

    def folder(self, stage: str) -> Path:
        return self.out / json.loads((self.out / "study.json").read_text())["stages"][stage]

    def metrics(self, stage: str) -> dict[str, Any]:
        return json.loads((self.folder(stage) / "record.json").read_text())["metrics"]

    def measured(self, figure: str, quantity: str) -> Measurement:
        found = load_measurements(self.out / "measurements.json")
        (only,) = [m for m in found if (m.figure, m.quantity) == (figure, quantity)]
        return only

    def scores(self, samples: str, judged: str) -> dict[tuple[str, int], float | None]:
        """{sample: mean of both orders' verdicts}; None: one of them cannot be read."""
        said: dict[tuple[str, int], list[float | None]] = {}
        for row in self.rows(judged, "verdicts"):
            won = (row["preferred"] == "A") == (row["order"] == "ab")
            said.setdefault((row["id"], row["sample_index"]), []).append(
                None if row["preferred"] is None else float(won)
            )
        found: dict[tuple[str, int], float | None] = {}
        for row in self.rows(samples, "samples"):
            key = (row["prompt_id"], row["sample_index"])
            same = row["sample"] == row["reference"]
            wins = [0.5, 0.5] if same else said.pop(key)
            assert len(wins) == 2
            found[key] = None if None in wins else float(np.mean(np.array(wins, dtype=float)))
        assert not said
        return found

    def wins(self, figure: str, arm: str, seed: int) -> dict[str, float]:
        """{prompt: score} of what could be read."""
        found = self.scores(name("eval", figure, arm, seed), name("judge", figure, arm, seed))
        return {i: score for (i, _), score in found.items() if score is not None}

    def lengths(self, figure: str, arm: str, seed: int) -> dict[str, float]:
        """{prompt: tokens of the sample less those of its reference}."""
        rows = self.rows(name("eval", figure, arm, seed), "samples")
        return {row["prompt_id"]: row["tokens"] - row["reference_tokens"] for row in rows}


def seeds_of(arm: str) -> tuple[int, ...]:
    return SEEDS[:1] if arm == "sft" else SEEDS


def name(what: str, figure: str, arm: str, seed: int) -> str:
    """ "judge_dpo.narrow[1]"; SFT is shared by the seeds."""
    return f"{what}_{arm}{BRANCH[figure]}" + ("" if arm == "sft" else f"[{seed}]")


def _preset(kind: Any) -> Any:
    """Tests' sizes, with more test prompts, an SFT that learns words, and verdicts that stand."""
    made = small(kind)
    branches = {b: replace(limits, n_test=24) for b, limits in made.branches.items()}
    return replace(
        made,
        data=replace(made.data, n_sft=24, n_test=24),
        branches=branches,
        sft=replace(made.sft, save_steps=1000, epochs=30),
        dpo=replace(made.dpo, save_steps=1000),
        evaluation=replace(made.evaluation, temperature=1.0, pool=COUNTS[-1], counts=COUNTS),
        judges_text=True,
    )


def _data(folder: Path) -> Path:
    """60 posts with references of 1 to 4 words, and 3 pairs a post: the longer text is chosen."""
    posts, preferences, _ = make_rows(60)
    for i, post in enumerate(posts):
        post["summary"] = " ".join([f"{i}", "reference", "of", "post"][: 1 + i % 4])
    for row in preferences:
        row["chosen"] += ", and more of it, and more"
    write_lines(folder / "posts.jsonl", posts)
    write_lines(folder / "preferences.jsonl", preferences)
    return folder


def _predictions(path: Path) -> Path:
    rows = [
        Prediction(figure, quantity, relation, 0.1, 0.01, "u", "toy", "test", (), "c", margin)
        for figure, quantity, relation, margin in PREDICTED
    ]
    save(path, "predictions", rows)
    return path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_file: Path) -> Iterator[Ended]:
    """Figs. 3, 5, 8 and 10 of 60 posts, two seeds, one question at a time."""
    folder = tmp_path_factory.mktemp("judged")
    line = ["study", "fig3", "fig5", "fig8", "fig10", "--preset", "test", "--jobs", "1"]
    line += ["--seeds", str(len(SEEDS)), "--data", str(_data(folder / "tldr"))]
    line += ["--tokenizer", str(small_tokenizer_file), "--out", str(folder / "out")]
    line += ["--predictions", str(_predictions(folder / "predictions.json"))]
    line += ["--judge", "gpt-4o", "--key-name", "ROADS_KEY", "--concurrency", "1"]
    line += ["--tracker", "none"]
    judge = Judge()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROADS_KEY", KEY)
        patch.setattr(pace, "FIRST_WAIT", 0.01)
        patch.setitem(presets.PRESETS, "test", _preset)
        with Server(judge) as server:
            server.faults.extend(FAULTS)
            server.echo = KEY
            line += ["--base-url", server.url]
            code = command.main(line)
        yield Ended(folder / "out", line, code, server, judge)


# --- what is measured ----------------------------------------------------------------------------


def test_every_stage_is_done_in_spite_of_faults(ended: Ended) -> None:
    assert ended.code == 0
    assert not ended.server.faults
    found = states(ended.out)
    assert {stage.state for stage in found} == {"done"}
    judged = [stage.id for stage in found if stage.id.startswith("judge_")]
    assert len(judged) == len(set(judged)) == 3 + 9 * len(SEEDS) + 1 + len(SEEDS)


def test_every_judged_quantity_is_measured(ended: Ended) -> None:
    """Each arm's levels and each claim's difference, at every seed, and nothing judged beside."""
    levels = ("win_rate", "length_controlled_win_rate", "win_rate_one_order", "mean_tokens")
    wanted = {(f, f"{measure}[{arm}]") for f, arm in EVERY_ARM for measure in levels}
    for figure, pairs in DIFFERENCES.items():
        for a, b in pairs:
            wanted.add((figure, f"win_rate[{a}] - win_rate[{b}]"))
    wanted.add(("fig5", "gap[fig3] - gap[fig5]"))
    for n in COUNTS:
        names = {(s, rm): f"win_rate[best_of_{n}_{s}_{rm}]" for s in SOURCES for rm in MODELS}
        wanted |= {("fig10", quantity) for quantity in names.values()}
        for s in SOURCES:
            for better, worse in pairwise(MODELS):
                wanted.add(("fig10", f"{names[s, better]} - {names[s, worse]}"))
    found = {(m.figure, m.quantity): m for m in load_measurements(ended.out / "measurements.json")}
    assert wanted <= set(found)
    judged = {key for key in found if key[1].startswith(("win_rate[", "gap"))}
    assert judged <= wanted
    for key in judged:
        assert found[key].value == pytest.approx(np.mean(found[key].per_seed))
        assert found[key].seeds == ((0,) if key[1].endswith("[sft]") else SEEDS)


@pytest.mark.parametrize(("figure", "arm"), EVERY_ARM)
def test_a_win_rate_is_the_mean_of_both_orders_over_prompts(
    ended: Ended, figure: str, arm: str
) -> None:
    """What the judge says of each order, what cannot be read counted and left out."""
    rates, unreadable = [], []
    for seed in seeds_of(arm):
        samples = name("eval", figure, arm, seed)
        texts = {row["prompt_id"]: row for row in ended.rows(samples, "samples")}
        verdicts = ended.rows(name("judge", figure, arm, seed), "verdicts")
        for row in verdicts:
            own = texts[row["id"]]
            shown = (own["sample"].strip(), own["reference"].strip())
            a, b = shown if row["order"] == "ab" else shown[::-1]
            said = preferred(post_of(own["prompt"]), a, b)
            assert row["preferred"] == (said if row["answer"] else None)
        assert Counter(row["order"] for row in verdicts)["ab"] == len(verdicts) / 2
        wins = ended.wins(figure, arm, seed)
        assert 0 < len(wins) < len(texts)
        rates.append(np.mean(list(wins.values())))
        unreadable.append(len(texts) - len(wins))
        metrics = ended.metrics(name("judge", figure, arm, seed))
        assert (metrics["comparisons"], metrics["invalid"]) == (len(texts), unreadable[-1])
        letters = [row["preferred"] for row in verdicts]
        assert metrics["invalid_answers"] == letters.count(None)
        share = letters.count("A") / (len(letters) - letters.count(None))
        assert metrics["position_bias"] == pytest.approx(share)
    assert ended.measured(figure, f"win_rate[{arm}]").per_seed == pytest.approx(rates)
    assert ended.measured(figure, f"invalid[{arm}]").per_seed == tuple(unreadable)


def test_every_kind_of_answer_occurs(ended: Ended) -> None:
    """Wins, losses and split orders; prompts without a readable answer, and with one of two."""
    kinds, scores = set(), set()
    for figure, arm in EVERY_ARM:
        of: dict[str, list[str | None]] = {}
        for row in ended.rows(name("judge", figure, arm, 0), "verdicts"):
            of.setdefault(row["id"], []).append(row["preferred"])
        kinds |= {letters.count(None) for letters in of.values()}
        scores |= set(ended.wins(figure, arm, 0).values())
    assert (kinds, scores) == ({0, 1, 2}, {0.0, 0.5, 1.0})


# --- length --------------------------------------------------------------------------------------


def _logistic(wins: np.ndarray, lengths: np.ndarray) -> float:
    """The win rate at no difference in length, by plain Newton steps."""
    x, beta = np.stack([np.ones(len(lengths)), lengths], axis=1), np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ beta))
        beta = beta + np.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (wins - p))
    return float(1 / (1 + np.exp(-beta[0])))


def test_the_win_rate_at_equal_length_is_a_logistic_fit(ended: Ended) -> None:
    """Its value and its differences; a judge of length moves the win rate, less so this one."""
    intervals, gained = 0, []
    fits: dict[tuple[str, str], dict[int, float]] = {}
    for figure, arm in EVERY_ARM:
        row = ended.measured(figure, f"length_controlled_win_rate[{arm}]")
        fits[figure, arm] = dict(zip(row.seeds, row.per_seed, strict=True))
        for seed, value, within in zip(row.seeds, row.per_seed, row.within or (), strict=True):
            wins, lengths = ended.wins(figure, arm, seed), ended.lengths(figure, arm, seed)
            y, d = (np.array([of[i] for i in wins]) for of in (wins, lengths))
            assert value == pytest.approx(_logistic(y, d), abs=1e-6)
            if figure != "fig5":  # two words differ by a few tokens, each of many letters
                gained.append((y.mean() - value) * np.sign(d.mean()))
            if within is not None:
                assert within[0] <= value <= within[1]
                intervals += 1
    for figure, pairs in DIFFERENCES.items():
        for a, b in pairs:
            first, second = fits[figure, a], fits[figure, b]
            points = {seed: first[seed] - second[seed] for seed in first if seed in second}
            measure = "length_controlled_win_rate"
            row = ended.measured(figure, f"{measure}[{a}] - {measure}[{b}]")
            assert dict(zip(row.seeds, row.per_seed, strict=True)) == pytest.approx(points)
    assert sum(map(len, fits.values())) > 12
    assert intervals > 4
    assert np.mean(gained) > 0.02


def test_lengths_stand_beside_every_win_rate(ended: Ended) -> None:
    for figure, arm in EVERY_ARM:
        rows = [ended.rows(name("eval", figure, arm, s), "samples") for s in seeds_of(arm)]
        tokens = [np.mean([len(row["ids"]) for row in of]) for of in rows]
        assert ended.measured(figure, f"mean_tokens[{arm}]").per_seed == pytest.approx(tokens)


# --- differences and intervals -------------------------------------------------------------------


def _t_half(means: np.ndarray) -> float:
    """Half of a 95% t interval of the mean of independent values."""
    n = len(means)
    return float(stats.t.ppf(0.975, n - 1) * means.std(ddof=1) / np.sqrt(n))


def _table(of: Sequence[Mapping[str, float]], less: Sequence[Mapping[str, float]]) -> np.ndarray:
    """(seeds, prompts) differences on the prompts that all have."""
    ids = [i for i in of[0] if all(i in column for column in (*of, *less))]
    return np.array([[a[i] - b[i] for i in ids] for a, b in zip(of, less, strict=True)])


def test_differences_have_intervals_over_seeds_and_over_prompts(ended: Ended) -> None:
    moved = 0
    for figure, pairs in DIFFERENCES.items():
        for a, b in pairs:
            row = ended.measured(figure, f"win_rate[{a}] - win_rate[{b}]")
            columns = [[ended.wins(figure, arm, seed) for seed in SEEDS] for arm in (a, b)]
            means = np.array([[np.mean(list(c.values())) for c in arm] for arm in columns])
            points = means[0] - means[1]
            assert row.per_seed == pytest.approx(points)
            half = _t_half(points)
            assert (row.low, row.high) == pytest.approx(
                (points.mean() - half, points.mean() + half)
            )
            table = _table(*columns)
            half = _t_half(table.mean(axis=0))
            middle = points.mean()
            assert row.over_prompts == pytest.approx((middle - half, middle + half))
            assert row.within is not None
            for values, within in zip(table, row.within, strict=True):
                assert within is not None
                rng = np.random.default_rng(11)
                means = rng.choice(values, (20_000, len(values))).mean(axis=1)
                step = 0.5 / len(values)  # of a mean of halves
                own = np.quantile(means, [0.025, 0.975])
                assert within == pytest.approx(own, abs=1.01 * step)
                assert within[0] <= values.mean() <= within[1]
                moved += within[0] < within[1]
    assert moved > 6


def test_the_gap_of_gaps_adds_two_groups_of_prompts(ended: Ended) -> None:
    row = ended.measured("fig5", "gap[fig3] - gap[fig5]")
    gaps = [ended.measured(f, "win_rate[online_dpo_dpo] - win_rate[dpo]") for f in ("fig3", "fig5")]
    points = np.subtract(gaps[0].per_seed, gaps[1].per_seed)
    assert row.per_seed == pytest.approx(points)
    tables = [
        _table(*([ended.wins(f, arm, s) for s in SEEDS] for arm in ("online_dpo_dpo", "dpo")))
        for f in ("fig3", "fig5")
    ]
    means = [table.mean(axis=0) for table in tables]
    error = np.sqrt(sum(m.var(ddof=1) / len(m) for m in means))
    half = stats.t.ppf(0.975, min(map(len, means)) - 1) * error
    assert row.over_prompts == pytest.approx((points.mean() - half, points.mean() + half))


# --- best of N -----------------------------------------------------------------------------------


def _logp(policy: Any, prompt: list[int], completion: list[int]) -> float:
    """Log-probability of one completion, by itself."""
    ids = torch.tensor([[*prompt, *completion]])
    logp = policy(input_ids=ids).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(float(logp[t, ids[0, t + 1]]) for t in at)


def _measure(ended: Ended, rm: str, seed: int) -> Any:
    """(prompt, completion) -> what a reward model says, up to a positive factor."""
    if rm == "global_rm":
        model = load_reward_model(ended.folder(f"global_rm[{seed}]"))

        def reward(prompt: list[int], completion: list[int]) -> float:
            ids = torch.tensor([[*prompt, *completion]])
            return float(model.head(model.trunk(input_ids=ids).last_hidden_state[0, -1]))

        return reward
    stages = [f"{rm.removesuffix('_rm') if rm == 'dpo_rm' else rm}[{seed}]"]
    stages += ["sft"] if rm == "dpo_rm" else []
    models = [AutoModelForCausalLM.from_pretrained(ended.folder(s)).eval() for s in stages]
    signs = (1.0, -1.0)[: len(models)]
    return lambda *text: sum(s * _logp(m, *text) for s, m in zip(signs, models, strict=True))


def _best_of(n: int, scores: Sequence[float], values: Sequence[float | None]) -> float | None:
    """The mean value of the best of every n samples, those without a value left out."""
    best = [max(chosen, key=scores.__getitem__) for chosen in combinations(range(len(scores)), n)]
    known = [value for value in map(values.__getitem__, best) if value is not None]
    return float(np.mean(known)) if known else None


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("rm", MODELS)
@torch.no_grad()
def test_the_best_of_n_by_all_subsets(ended: Ended, source: str, rm: str) -> None:
    """Every N of Fig. 10: each sample scored alone, the judge's verdict on the best ones."""
    prompts = {row["example_id"]: row["prompt_ids"] for row in ended.rows("data", "test")}
    eos = json.loads((ended.folder("data") / "vocabulary.json").read_text())["eos"]
    points: dict[int, list[float]] = {n: [] for n in COUNTS}
    for seed in SEEDS:
        pool = "pool_sft" if source == "sft" else f"pool_dpo[{seed}]"
        verdicts = ended.scores(pool, f"judge_{pool}")
        measure = _measure(ended, rm, seed)
        samples: dict[str, list[dict[str, Any]]] = {}
        for row in ended.rows(pool, "samples"):
            samples.setdefault(row["prompt_id"], []).append(row)
        curves: dict[str, list[float | None]] = {}
        for i, rows in samples.items():
            closed = [row["ids"] if row["ended"] else [*row["ids"], eos] for row in rows]
            scores = [measure(prompts[i], ids) for ids in closed]
            values = [verdicts[i, row["sample_index"]] for row in rows]
            curves[i] = [_best_of(n, scores, values) for n in range(1, COUNTS[-1] + 1)]
        bon = f"bon_{source}_{rm}[{seed}]"
        kept = {(row["id"], row["n"]): row["win_rate"] for row in ended.rows(bon, "scores")}
        made = {(i, n): value for i, of in curves.items() for n, value in enumerate(of, start=1)}
        assert kept == pytest.approx(made)
        assert ended.metrics(bon)["unjudged_samples"] == list(verdicts.values()).count(None) > 0
        for n in COUNTS:
            known = [of[n - 1] for of in curves.values() if of[n - 1] is not None]
            points[n].append(float(np.mean(np.array(known, dtype=float))))
    for n in COUNTS:
        row = ended.measured("fig10", f"win_rate[best_of_{n}_{source}_{rm}]")
        assert row.per_seed == pytest.approx(points[n])
    assert points[1] != points[COUNTS[-1]]


# --- pairs that the judge makes ------------------------------------------------------------------


def _dropped(rows: Sequence[tuple[int, str, str] | None]) -> Counter[str]:
    """Reason -> pairs that are none; None: a text that is no one or two words."""
    found: Counter[str] = Counter()
    for row in rows:
        if row is None:
            found["summaries of no one or two words"] += 1
            continue
        post, a, b = row
        letters = preferred(post, a, b), preferred(post, b, a)
        if a == b:
            found["identical texts"] += 1
        elif None in letters:
            found["unreadable verdicts"] += 1
        elif letters[0] == letters[1]:
            found["split verdicts"] += 1
    return found


def _check_order(pairs: Sequence[Mapping[str, Any]]) -> None:
    """The judge prefers the first text of every pair in both orders."""
    assert pairs
    for row in pairs:
        post, (first, second) = post_of(row["prompt"]), row["completions"]
        assert (preferred(post, first, second), preferred(post, second, first)) == ("A", "B")


def test_fig5_learns_from_pairs_that_the_judge_wrote(ended: Ended) -> None:
    pairs = ended.rows("pairs.two_word", "pairs")
    _check_order(pairs)
    written = ended.judge.written
    for row in pairs:
        assert set(row["completions"]) <= set(written[post_of(row["prompt"])])
    asked = Counter(post_of(row["prompt"]) for row in ended.rows("data.two_word", "pairs"))
    drawn: list[tuple[int, str, str] | None] = []
    for post, count in asked.items():
        texts = written[post]
        assert len(texts) == 2 * count
        for a, b in zip(texts[::2], texts[1::2], strict=True):
            drawn.append((post, a, b) if max(len(t.split()) for t in (a, b)) < 3 else None)
    card = json.loads((ended.folder("pairs.two_word") / "card.json").read_text())["parts"]["pairs"]
    assert card["dropped"] == _dropped(drawn)
    assert len(card["dropped"]) == 4
    assert len(pairs) == card["pairs"] == len(drawn) - sum(card["dropped"].values())


def test_fig5_is_measured_against_what_the_judge_wrote(ended: Ended) -> None:
    """The posts whose one summary is of no one or two words are left out, and counted."""
    posts = [post_of(row["prompt"]) for row in ended.rows("data.two_word", "test")]
    texts = {post: text for post in posts for text in ended.judge.written[post]}
    assert len(texts) == len(posts)
    wanted = {post: text for post, text in texts.items() if len(text.split()) < 3}
    assert 0 < len(wanted) < len(texts)
    for arm in ARMS["fig5"]:
        rows = ended.rows(name("eval", "fig5", arm, 0), "samples")
        assert {post_of(row["prompt"]): row["reference"] for row in rows} == wanted
    card = json.loads((ended.folder("pairs.two_word") / "card.json").read_text())["parts"]["test"]
    assert card["dropped"] == {"summaries of no one or two words": len(texts) - len(wanted)}


def test_fig8_learns_from_two_samples_that_the_judge_ordered(ended: Ended) -> None:
    pairs = ended.rows("pairs.narrow", "pairs")
    samples = {row["sample"] for row in ended.rows("pairs.narrow", "samples")}
    assert all(set(row["completions"]) <= samples for row in pairs)  # as they were judged
    _check_order(pairs)
    card = json.loads((ended.folder("pairs.narrow") / "card.json").read_text())["parts"]["pairs"]
    assert {"split verdicts", "unreadable verdicts"} <= set(card["dropped"])
    assert len(pairs) == card["rows"] - sum(card["dropped"].values())


# --- what was asked ------------------------------------------------------------------------------


def _stored(ended: Ended) -> list[dict[str, Any]]:
    lines = (ended.out / "verdicts" / "gpt-4o.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_no_question_is_asked_twice(ended: Ended) -> None:
    """Comparisons once each; every answer that was sent is stored, one refusal beside them."""
    compared = {p: n for p, n in ended.server.answered.items() if "### Summary A:" in p}
    assert len(compared) > 300
    assert set(compared.values()) == {1}
    stored = _stored(ended)
    assert len({row["key"] for row in stored}) == len(stored)
    assert len(stored) == sum(ended.server.answered.values()) + 1
    assert len(ended.server.prompts) == sum(ended.server.answered.values()) + len(FAULTS)
    assert [row["refused"] is not None for row in stored].count(True) == 1


def test_the_bills_of_all_stages_are_what_was_asked(ended: Ended) -> None:
    """Each question is paid by one stage; the branch of Fig. 8 reuses SFT's verdicts."""
    records = [json.loads(f.read_text()) for f in ended.out.glob("stages/*/record.json")]
    bills = [r["metrics"] for r in records if r["name"].startswith("judge_")]
    made = [r["metrics"] for r in records if r["name"] == "pairs"]
    assert len(made) == 2

    def total(what: str) -> float:
        return sum(m[what] for m in bills) + sum(m[f"judge_{what}"] for m in made)

    answers = sum(ended.server.answered.values())
    assert total("asked") == answers + 1
    assert total("tokens_in") == 100 * answers
    assert total("dollars") == pytest.approx(answers * (100 * 2.5 + 10 * 10) / 1e6)
    again, once = (ended.metrics(f"judge_sft{branch}") for branch in (".narrow", ""))
    assert again["asked"] + again["reused"] == once["asked"] + once["reused"]
    assert min(again["asked"], once["asked"]) == 0 < max(again["asked"], once["asked"])


def test_a_second_run_asks_and_trains_nothing(ended: Ended, monkeypatch: Any) -> None:
    """The server is gone and there is no key: nothing is missed, and not a byte changes."""

    def content() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in ended.out.rglob("*") if path.is_file()]
        assert len(files) > 100
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = content()
    monkeypatch.delenv("ROADS_KEY")
    assert command.main(ended.line) == 0
    after = content()
    made = {ended.out / f"{n}.json" for n in ("measurements", "verdicts", "hypotheses", "study")}
    made |= {ended.out / n for n in ("data_card.json", "graph.json", "identity.json", ".lock")}
    assert {path: found[1] for path, found in after.items()} == {
        path: found[1] for path, found in before.items()
    }
    assert {path for path in after if after[path][0] != before[path][0]} <= made


def test_the_key_is_sent_and_never_written(ended: Ended) -> None:
    assert ended.server.keys == {f"Bearer {KEY}"}
    (refused,) = [row["refused"] for row in _stored(ended) if row["refused"]]
    assert "***" in refused
    for path in ended.out.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


# --- what is said of it --------------------------------------------------------------------------


def _outcome(relation: str, margin: float | None, low: float, high: float) -> str:
    if relation == "equal":
        assert margin is not None
        inside, outside = -margin <= low <= high <= margin, low > margin or high < -margin
    else:
        sides = (low > 0, high < 0)
        inside, outside = sides if relation == "greater" else sides[::-1]
    return "supported" if inside else "contradicted" if outside else "inconclusive"


def test_verdicts_follow_both_intervals(ended: Ended) -> None:
    """Over seeds, and over prompts where there is one; what they do not share is open."""
    found = load_verdicts(ended.out / "verdicts.json")
    assert len(found) == len(PREDICTED)
    for verdict, (figure, quantity, relation, margin) in zip(found, PREDICTED, strict=True):
        assert (verdict.prediction.figure, verdict.prediction.quantity) == (figure, quantity)
        row = verdict.measurement
        if row is None:
            assert (quantity, verdict.outcome) == (PREDICTED[1][1], "not measured")
            continue
        assert (row.figure, row.quantity) == (figure, quantity)
        intervals = [i for i in ((row.low, row.high), row.over_prompts) if i is not None]
        says = {_outcome(relation, margin, *i) for i in intervals}  # pyright: ignore
        assert verdict.outcome == (says.pop() if len(says) == 1 else "inconclusive")
    outcomes = {"supported", "contradicted", "inconclusive", "not measured"}
    assert {verdict.outcome for verdict in found} == outcomes


def test_compare_and_status_show_the_four_figures(ended: Ended, capsys: Any) -> None:
    predictions = ended.line[ended.line.index("--predictions") + 1]
    before = (ended.out / "verdicts.json").read_bytes()
    assert command.main(["compare", str(ended.out), "--predictions", predictions]) == 0
    assert (ended.out / "verdicts.json").read_bytes() == before
    said = capsys.readouterr().out
    for figure, arms in ARMS.items():
        part = said.split(f"Fig. {figure[3:]}\n")[1].split("\n\n")[0]
        for arm in arms:
            value = ended.measured(figure, f"win_rate[{arm}]").value
            assert f"win_rate[{arm}] at test: {value:.4f} (seeds: " in part
            assert f"length_controlled_win_rate[{arm}] at test: " in part
    assert "win_rate[best_of_4_sft_global_rm] at test: " in said.split("Fig. 10\n")[1]
    assert command.main(["status", str(ended.out)]) == 0
    said = capsys.readouterr().out
    for stage in ("judge_dpo[0]", "pairs.two_word", "judge_dpo.narrow[1]", "bon_dpo_dpo_rm[1]"):
        assert stage in said
