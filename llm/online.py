"""Online preference data: K samples a prompt, ranked by a reward model, best against worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm import tables
from llm.config import OnlineConfig
from llm.data.tokenize import load_tokenizer
from llm.forward import completion_logps, completion_rewards
from llm.models import RewardModel
from llm.sample import Sample, TransformersSampler
from llm.train import Row, score
from llm.work import Work

PAIR = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt_ids", tables.IDS),
        ("chosen_ids", tables.IDS),
        ("rejected_ids", tables.IDS),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("chosen_logp", pa.float64()),  # of the policy that sampled them, logits over temperature
        ("rejected_logp", pa.float64()),
    ]
)
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """One prompt, how many preference rows draw from this pool, and its K samples' scores."""

    prompt_id: str
    prompt: str
    prompt_ids: Ids
    rows: int


def pools(examples: Sequence[Any], kind: str) -> list[Pool]:
    """One pool a preference row ("row"), or one a prompt, shared by its rows ("prompt")."""
    if kind == "row":
        return [Pool(e.example_id, e.prompt, e.prompt_ids, 1) for e in examples]
    counts: dict[Ids, int] = {}
    first: dict[Ids, Any] = {}
    for example in examples:
        counts[example.prompt_ids] = counts.get(example.prompt_ids, 0) + 1
        first.setdefault(example.prompt_ids, example)
    return [Pool(e.example_id, e.prompt, ids, counts[ids]) for ids, e in first.items()]


def best_and_worst(
    samples: Sequence[Ids], scores: Sequence[float], rows: int
) -> list[tuple[int, int]]:
    """(winner, loser) indices for `rows` pairs: the best against the worst distinct sample.

    Further rows of one pool take the next-worst distinct sample, and start again when all are used.
    No pair where all samples are the same; equal scores keep the order of the draw.
    """
    distinct = list({ids: i for i, ids in reversed(list(enumerate(samples)))}.values())
    ranked = sorted(distinct, key=lambda i: (-scores[i], i))
    if len(ranked) < 2:
        return []
    losers = ranked[:0:-1]
    return [(ranked[0], losers[row % len(losers)]) for row in range(rows)]


def make_pairs(work: Work, policy: Any, rewards: RewardModel) -> dict[str, float | int | None]:
    """Sample, score and pair; writes samples.parquet and pairs.parquet, returns the counts."""
    online = OnlineConfig(**work.settings["online"])
    words = work.vocabulary
    asked = pools(work.examples("pairs"), online.pool)
    sampler = TransformersSampler(
        policy, eos=words["eos"], pad=words["pad"], batch_prompts=online.batch_prompts
    )
    drawn = sampler.sample(
        [pool.prompt_ids for pool in asked],
        k=online.samples,
        temperature=online.temperature,
        max_tokens=work.settings["tokens"],
        seed=work.seed,
        report=lambda fraction: work.report(0.7 * fraction),
    )
    ids = [[sample.ids for sample in samples] for samples in drawn]
    settings = {
        "pad": words["pad"],
        "batch_size": work.settings["batch"],
        "device": policy.device,
        "report": lambda fraction: work.report(0.7 + 0.15 * fraction),
    }
    prompts = [pool.prompt_ids for pool in asked]
    closed = [[_closed(sample, words["eos"]) for sample in samples] for samples in drawn]
    ranked = score(
        partial(completion_rewards, rewards), list(zip(prompts, closed, strict=True)), **settings
    )
    chosen = [
        best_and_worst(samples, scores, pool.rows)
        for pool, samples, scores in zip(asked, ids, ranked, strict=True)
    ]
    logps = _logps(policy, prompts, ids, chosen, online.temperature, settings)
    rows = _rows(asked, ids, ranked, chosen, logps)
    tables.write_rows(work.folder / "pairs.parquet", rows, PAIR)
    _write_samples(work, asked, drawn, ranked)
    return _counts(asked, drawn, chosen, rows)


def _closed(sample: Sample, eos: int) -> Ids:
    """The sample as the reward model reads it: one cut by the length limit is closed by EOS."""
    return sample.ids if sample.ended else (*sample.ids, eos)


def _logps(
    policy: Any,
    prompts: Sequence[Ids],
    ids: Sequence[Sequence[Ids]],
    chosen: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
    settings: dict[str, Any],
) -> list[dict[int, float]]:
    """For each pool, the sampling policy's log-prob of every sample that a pair uses."""
    used = [sorted({i for pair in pairs for i in pair}) for pairs in chosen]
    most = max((len(indices) for indices in used), default=0)
    asked = [pool for pool, indices in enumerate(used) if indices]
    rows = []
    for pool in asked:
        padded = used[pool] + used[pool][:1] * (most - len(used[pool]))
        rows.append((prompts[pool], [ids[pool][i] for i in padded]))
    found: list[dict[int, float]] = [{} for _ in used]
    measure = partial(completion_logps, policy, temperature=temperature)
    for pool, values in zip(asked, score(measure, rows, **settings), strict=True):
        found[pool] = dict(zip(used[pool], values, strict=False))
    return found


def _rows(
    asked: Sequence[Pool],
    ids: Sequence[Sequence[Ids]],
    scores: Sequence[Sequence[float]],
    chosen: Sequence[Sequence[tuple[int, int]]],
    logps: Sequence[dict[int, float]],
) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": pool.prompt_id,
            "prompt_ids": pool.prompt_ids,
            "chosen_ids": ids[p][best],
            "rejected_ids": ids[p][worst],
            "chosen_score": scores[p][best],
            "rejected_score": scores[p][worst],
            "chosen_logp": logps[p][best],
            "rejected_logp": logps[p][worst],
        }
        for p, pool in enumerate(asked)
        for best, worst in chosen[p]
    ]


def _write_samples(
    work: Work,
    asked: Sequence[Pool],
    drawn: Sequence[Sequence[Sample]],
    scores: Sequence[Sequence[float]],
) -> None:
    tokenizer = load_tokenizer(work.inputs["data"] / "tokenizer")
    rows = [
        {
            "prompt_id": pool.prompt_id,
            "prompt": pool.prompt,
            "sample": tokenizer.decode(sample.ids, skip_special_tokens=True).strip(),
            "ids": sample.ids,
            "tokens": len(sample.ids),
            "ended": sample.ended,
            "score": value,
            "reference": None,
            "reference_score": None,
        }
        for pool, samples, values in zip(asked, drawn, scores, strict=True)
        for sample, value in zip(samples, values, strict=True)
    ]
    tables.write_rows(work.folder / "samples.parquet", rows, tables.SAMPLE)


def _counts(
    asked: Sequence[Pool],
    drawn: Sequence[Sequence[Sample]],
    chosen: Sequence[Sequence[tuple[int, int]]],
    rows: Sequence[dict[str, Any]],
) -> dict[str, float | int | None]:
    flat = [sample for samples in drawn for sample in samples]
    return {
        "pools": len(asked),
        "samples": len(flat),
        "pairs": len(rows),
        "pairs_asked": sum(pool.rows for pool in asked),
        "pools_dropped_all_identical": sum(not pairs for pairs in chosen),
        "pairs_tied_in_score": sum(r["chosen_score"] == r["rejected_score"] for r in rows),
        "distinct_samples_per_pool": sum(len({s.ids for s in x}) for x in drawn) / len(drawn),
        "ended_rate": sum(sample.ended for sample in flat) / len(flat),
        "mean_tokens": sum(len(sample.ids) for sample in flat) / len(flat),
    }


def read_pairs(folder: Path) -> list[Row]:
    """The training rows of an online-pairs stage, the sampling policy's log-probs as reference."""
    return [
        Row(
            tuple(row["prompt_ids"]),
            (tuple(row["chosen_ids"]), tuple(row["rejected_ids"])),
            (row["chosen_logp"], row["rejected_logp"]),
        )
        for row in tables.read_rows(folder / "pairs.parquet")
    ]
