"""Pairs that a study makes itself: of two-word summaries, ranked by ROUGE-L, of two SFT samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import expit

from llm import judge, tables
from llm.config import OnlineConfig
from llm.data.card import lengths
from llm.data.example import Example
from llm.data.task_file import read_task
from llm.data.tokenize import completions, load_tokenizer
from llm.errors import InputError
from llm.judge import Score
from llm.judge.texts import Comparison
from llm.records import write_json
from llm.stages.online import Metrics, best_and_worst, decoded, draw, pools, sampled, write_samples
from llm.stages.work import Work

Pair = tuple[str, str]  # texts: preferred, dispreferred
# Seeds of the draws: apart from every training seed, whose online samples are of the same policy
SEEDS = {"pairs": 1_000_003, "validation_pairs": 1_000_033}
VALIDATION = 1000  # validation pairs made at most: they check a reward model, no figure reads them
SAME = "identical texts"
NO_COMPLETION = "no completion of the task"
LOSES = -math.inf  # the gold reward of what is no completion of the task
UNWRITTEN = "summaries of no one or two words"
UNREADABLE, SPLIT = "unreadable verdicts", "split verdicts"
INVALID = (UNWRITTEN, UNREADABLE)
NOTES = {
    "ranked": "Best and worst of the SFT policy's samples, by ROUGE-L F1 against the preferred "
    "completion of the row (a task: by its gold reward); different texts, ties by order "
    "(App. C.1).",
    "narrow": "Two samples of the SFT policy a row; the judge picks in both orders, or in the one "
    "of the settings (a task: Bradley-Terry by its gold reward). Identical texts, split and "
    "unreadable verdicts are no preference (App. C.1).",
    "two_word": "Two two-word summaries by the judge model a row, labelled by the judge in both "
    "orders, or in the one of the settings; it writes the test references too (App. C.1).",
}


@dataclass(frozen=True)
class Made:
    """What became of one part's rows: a pair each, or the reason why there is none."""

    rows: Sequence[Pair | str]
    counts: Metrics = field(default_factory=dict)

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> rows."""
        return dict(Counter(found for found in self.rows if isinstance(found, str)))


def make(work: Work) -> Metrics:
    """Write pairs.parquet, validation_pairs.parquet (two words: test.parquet too) and card.json.

    settings["how"]: "ranked" (Fig. 6), "narrow" (Fig. 8) or "two_word" (Fig. 5, on text). A row of
    the preference data gives one pair on its prompt, or none; why not is counted. Returns the
    counts of the training part. Raises InputError where no row gives a pair.
    """
    how = work.settings["how"]
    with _judge(work) as asked:
        parts = {
            "validation_pairs": _part(work, asked, "validation_pairs", 0.0, 0.1),
            "pairs": _part(work, asked, "pairs", 0.1, 0.9),
        }
        found = parts["pairs"]
        if not found["pairs"]:
            raise InputError(f"no pair could be made of {found['rows']} rows: {found['dropped']}")
        if how == "two_word":
            parts["test"] = _two_word_test(_between(work, 0.9, 1.0), asked)
        bill = {} if asked is None else _bill(asked, parts)
    card = {"how": how, "parts": parts, "judge": bill or None, "notes": [NOTES[how]]}
    write_json(work.folder / "card.json", card)
    numbers = {name: n for name, n in found.items() if isinstance(n, int | float)}
    return {**numbers, "dropped": sum(found["dropped"].values()), **bill}


def _bill(asked: Any, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was asked, what it cost, and how many rows an answer that cannot be read left out."""
    bill = {f"judge_{name}": value for name, value in asdict(asked.bill()).items()}
    unread = [part["dropped"].get(why, 0) for part in parts.values() for why in INVALID]
    return {**bill, "judge_invalid": sum(unread)}


def _judge(work: Work) -> AbstractContextManager[Any]:
    """The judge of text, opened; None where pairs are ranked by a number."""
    exact = (work.inputs["data"] / "task.json").exists()
    return nullcontext() if exact or work.settings["how"] == "ranked" else judge.open_judge(work)


def _part(work: Work, asked: Any, part: str, start: float, end: float) -> dict[str, Any]:
    """Make and write one part; its counts. start, end: its share of the stage's progress."""
    way = {"ranked": _ranked, "narrow": _narrow, "two_word": _two_word}[work.settings["how"]]
    rows = work.examples(part)[: VALIDATION if part == "validation_pairs" else None]
    made = way(_between(work, start, end), asked, part, rows)
    examples = _examples(work, rows, made.rows)
    tables.write_examples(work.folder / f"{part}.parquet", examples)
    return {
        "rows": len(rows),
        "pairs": len(examples),
        "dropped": made.dropped,
        **made.counts,
        "length_quantiles": lengths((), examples),
    }


def _between(work: Work, start: float, end: float) -> Work:
    """The same work, whose progress runs from start to end."""
    return replace(work, report=lambda share: work.report(start + (end - start) * share))


def _examples(work: Work, rows: Sequence[Example], found: Sequence[Pair | str]) -> list[Example]:
    """The rows that gave a pair, with its texts in place of theirs."""
    kept = [(row, pair) for row, pair in zip(rows, found, strict=True) if not isinstance(pair, str)]
    return _with_texts(work, [row for row, _ in kept], [pair for _, pair in kept])


def _with_texts(
    work: Work, rows: Sequence[Example], texts: Sequence[Sequence[str]]
) -> list[Example]:
    """The rows with other completions, tokenised as all data are: apart, one space, EOS.

    Whole, as they were judged: a text may take more tokens than it was sampled in.
    """
    tokenizer = load_tokenizer(work.inputs["data"] / "tokenizer")
    made = completions(tokenizer, [text for group in texts for text in group], None)
    return [
        replace(
            row,
            completions=tuple(made[text].text for text in group),
            completion_ids=tuple(made[text].ids for text in group),
        )
        for row, group in zip(rows, texts, strict=True)
    ]


# --- samples of the SFT policy -------------------------------------------------------------------


def _sampled(
    work: Work, part: str, rows: Sequence[Example], kind: str
) -> tuple[list[list[str]], Metrics]:
    """(texts of each row's samples, counts); the training part's samples are kept as a file."""
    asked = pools(rows, kind)
    prompts = [pool.prompt_ids for pool in asked]
    k = work.settings["samples"]
    drawn = draw(work, prompts, k=k, seed=SEEDS[part], share=0.8) if prompts else []
    texts = decoded(work, drawn)
    if part == "pairs":
        write_samples(work, asked, drawn, texts)
    place = {pool.prompt_ids: p for p, pool in enumerate(asked)}
    of_row = range(len(rows)) if kind == "row" else [place[row.prompt_ids] for row in rows]
    return [texts[p] for p in of_row], sampled(drawn)


def _ranked(work: Work, _: None, part: str, rows: Sequence[Example]) -> Made:
    """Best against worst of a row's samples (Fig. 6)."""
    online = OnlineConfig(**work.settings["online"])
    texts, counts = _sampled(work, part, rows, online.pool)
    scores = _scores(work, rows, texts)
    found: list[Pair | str] = []
    tied = 0
    for samples, values in zip(texts, scores, strict=True):
        ranks = [LOSES if value is None else value for value in values]
        chosen = best_and_worst(samples, ranks, 1)
        if not chosen or max(ranks) == LOSES:
            found.append(NO_COMPLETION if chosen else SAME)
            continue
        ((best, worst),) = chosen
        found.append((samples[best], samples[worst]))
        tied += ranks[best] == ranks[worst]
    invalid = sum(judge.invalid(values) for values in scores)
    return Made(found, {**counts, "pairs_tied_in_score": tied, "invalid_samples": invalid})


def _scores(
    work: Work, rows: Sequence[Example], texts: Sequence[Sequence[str]]
) -> list[list[Score]]:
    """A task: the gold reward of each text; else ROUGE-L F1 against the row's preferred completion.

    Each distinct (text, what it is held against) is scored once.
    """
    task = work.inputs["data"] / "task.json"
    scorer = judge.GoldJudge(read_task(task)) if task.exists() else judge.RougeLJudge()

    def against(row: Example) -> str:
        return row.prompt if task.exists() else row.completions[0]

    asked = {
        (against(row), text): row
        for row, samples in zip(rows, texts, strict=True)
        for text in samples
    }
    values = scorer.scores(list(asked.values()), [text for _, text in asked])
    score = dict(zip(asked, values, strict=True))
    return [
        [score[against(row), text] for text in samples]
        for row, samples in zip(rows, texts, strict=True)
    ]


def _narrow(work: Work, asked: Any, part: str, rows: Sequence[Example]) -> Made:
    """Two samples a row, whatever rows share a prompt; the judge or the gold reward picks."""
    texts, counts = _sampled(work, part, rows, "row")
    pairs = [(first, second) for first, second in texts]
    if asked is None:
        return Made(_bradley_terry(_scores(work, rows, texts), pairs, SEEDS[part]), counts)
    return Made(_judged(work, asked, rows, pairs), counts)


def _bradley_terry(
    scores: Sequence[Sequence[Score]], pairs: Sequence[Pair], seed: int
) -> list[Pair | str]:
    """P(first preferred) = sigmoid(r*(first) - r*(second)) (Eq. 4); row i's label is its own.

    What is no completion of the task loses, as everywhere; against another such there is no pair.
    """
    uniforms = np.random.default_rng(seed).random(len(pairs))
    found: list[Pair | str] = []
    for (first, second), (a, b), u in zip(pairs, scores, uniforms, strict=True):
        if first == second:
            found.append(SAME)
        elif a is None and b is None:
            found.append(NO_COMPLETION)
        else:
            margin = (LOSES if a is None else a) - (LOSES if b is None else b)
            found.append((first, second) if u < expit(margin) else (second, first))
    return found


# --- the judge -----------------------------------------------------------------------------------


def _judged(
    work: Work, asked: Any, rows: Sequence[Example], pairs: Sequence[Pair | None]
) -> list[Pair | str]:
    """Each pair in the order that the judge prefers, or why it has none."""
    found: list[Pair | str] = [UNWRITTEN if pair is None else SAME for pair in pairs]
    compared = {
        i: Comparison(rows[i].prompt, *pair)
        for i, pair in enumerate(pairs)
        if pair is not None and pair[0] != pair[1]
    }
    preferences = asked.prefer(list(compared.values()), work.report)
    for (i, row), preference in zip(compared.items(), preferences, strict=True):
        if preference.score is None:
            found[i] = UNREADABLE
        elif preference.score == 0.5:
            found[i] = SPLIT
        else:
            wins = preference.score == 1.0
            found[i] = (row.first, row.second) if wins else (row.second, row.first)
    return found


def _two_word(work: Work, asked: Any, part: str, rows: Sequence[Example]) -> Made:
    """Two summaries a row by the judge model, labelled by it (Fig. 5)."""
    pairs = _written(_between(work, 0.0, 0.5), asked, rows)
    tokens = work.settings["tokens"]
    found = _judged(_between(work, 0.5, 1.0), asked, rows, pairs)
    longer = sum(
        len(ids) > tokens for row in _examples(work, rows, found) for ids in row.completion_ids
    )
    return Made(found, {"texts_longer_than_generated": longer})


def _written(work: Work, asked: Any, rows: Sequence[Example]) -> list[Pair | None]:
    """Two summaries a row; rows of one prompt get different draws. None: an unreadable one."""
    of_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of_prompt.setdefault(row.prompt, []).append(i)
    by_rows: dict[int, list[str]] = {}
    for prompt, members in of_prompt.items():
        by_rows.setdefault(len(members), []).append(prompt)
    pairs: list[Pair | None] = [None] * len(rows)
    done = 0
    for count, prompts in sorted(by_rows.items()):
        share = count * len(prompts) / len(rows)
        report = _between(work, done, done + share).report
        texts = asked.two_words(prompts, 2 * count, report)
        for prompt, drawn in zip(prompts, texts, strict=True):
            for i, first, second in zip(of_prompt[prompt], drawn[::2], drawn[1::2], strict=True):
                pairs[i] = None if first is None or second is None else (first, second)
        done += share
    return pairs


def _two_word_test(work: Work, asked: Any) -> dict[str, Any]:
    """test.parquet: the judge's own summary of each test post is the reference."""
    rows = work.examples("test")
    texts = asked.two_words([row.prompt for row in rows], 1, work.report)
    kept = [(row, text) for row, (text,) in zip(rows, texts, strict=True) if text is not None]
    if not kept:
        raise InputError(f"the judge wrote no reference for {len(rows)} test posts: {UNWRITTEN}")
    examples = _with_texts(work, [row for row, _ in kept], [(text,) for _, text in kept])
    tables.write_examples(work.folder / "test.parquet", examples)
    dropped = {UNWRITTEN: len(rows) - len(kept)} if len(kept) < len(rows) else {}
    return {"rows": len(rows), "references": len(kept), "dropped": dropped}
