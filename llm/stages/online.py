"""Online preference data: K samples a prompt, ranked by a reward model, best against worst."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm import tables
from llm.config import OnlineConfig
from llm.data.tokenize import load_tokenizer
from llm.models.build import device, load_policy, load_reward_model
from llm.models.forward import completion_logps, completion_rewards
from llm.sampling.sample import Sample, open_sampler
from llm.stages.evaluate import scored
from llm.stages.work import Work
from llm.training.objectives import Row

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
Metrics = dict[str, float | int | None]


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
    samples: Sequence[Hashable], scores: Sequence[float], rows: int
) -> list[tuple[int, int]]:
    """(winner, loser) indices for `rows` pairs: the best against the worst distinct sample.

    samples: texts. One that was drawn in several encodings has a score for each: the worst loses.
    Further rows of one pool take the next-worst distinct sample, and start again when all are used.
    No pair where all samples are the same; equal scores keep the order of the draw.
    """
    best = min(range(len(samples)), key=lambda i: (-scores[i], i))
    worst: dict[Hashable, int] = {}
    for i in sorted(range(len(samples)), key=lambda i: (scores[i], i)):
        worst.setdefault(samples[i], i)
    others = [i for text, i in worst.items() if text != samples[best]]
    losers = sorted(others, key=lambda i: (scores[i], -i))
    return [(best, losers[row % len(losers)]) for row in range(rows if losers else 0)]


def added_pools(
    examples: Sequence[Any], more: Sequence[Any], most: int | None, kind: str
) -> list[Pool]:
    """Pools of the SFT rows whose post no preference row has, at most `most` rows (Fig. 7)."""
    known = {example.post_id for example in examples}
    return pools([example for example in more if example.post_id not in known][:most], kind)


def make(work: Work) -> Metrics:
    """Sample, score and pair; writes samples.parquet and pairs.parquet, returns the counts.

    One model is in memory at a time: the sampler's, the reward model, the policy.
    """
    online = OnlineConfig(**work.settings["online"])
    examples = work.examples("pairs")
    asked = pools(examples, online.pool)
    own = len(asked)
    if work.settings.get("more_prompts"):
        asked += added_pools(examples, work.examples("sft"), online.more_prompts, online.pool)
    prompts = [pool.prompt_ids for pool in asked]
    drawn = draw(work, prompts, k=online.samples, seed=work.seed, share=0.7)
    ranked = _rewards(work, prompts, drawn)
    texts = decoded(work, drawn)
    chosen = [
        best_and_worst(samples, scores, pool.rows)
        for pool, samples, scores in zip(asked, texts, ranked, strict=True)
    ]
    ids = [[sample.ids for sample in samples] for samples in drawn]
    logps = _logps(work, prompts, ids, chosen, online.temperature)
    rows = _rows(asked, ids, ranked, chosen, logps)
    tables.write_rows(work.folder / "pairs.parquet", rows, PAIR)
    write_samples(work, asked, drawn, texts, ranked)
    return {**_counts(asked, drawn, chosen, rows), **_factor(asked, own)}


def draw(
    work: Work, prompts: Sequence[Ids], *, k: int, seed: int, share: float
) -> list[list[Sample]]:
    """K samples of the stage's policy a prompt, at the online temperature.

    share: of the stage's time, for its progress.
    """
    online = OnlineConfig(**work.settings["online"])
    sampler = open_sampler(
        work.inputs["policy"],
        sampling=work.settings["sampling"],
        words=work.vocabulary,
        runtime=work.runtime,
        batch_prompts=online.batch_prompts,
        device=device(),
        stage=work.folder,
    )
    return sampler.sample(
        prompts,
        k=k,
        temperature=online.temperature,
        max_tokens=work.settings["tokens"],
        seed=seed,
        report=lambda fraction: work.report(share * fraction),
    )


def _rewards(
    work: Work, prompts: Sequence[Ids], drawn: Sequence[Sequence[Sample]]
) -> list[tuple[float, ...]]:
    """The global reward model's score of every sample."""
    model = load_reward_model(work.inputs["global_rm"])
    eos = work.vocabulary["eos"]
    closed = [[_closed(sample, eos) for sample in samples] for samples in drawn]
    rows = list(zip(prompts, closed, strict=True))
    return scored(_after(work, 0.7), partial(completion_rewards, model), model, rows)


def _after(work: Work, start: float) -> Work:
    """The same work, whose progress runs from `start` on by 0.15."""
    return replace(work, report=lambda fraction: work.report(start + 0.15 * fraction))


def _closed(sample: Sample, eos: int) -> Ids:
    """The sample as the reward model reads it: one cut by the length limit is closed by EOS."""
    return sample.ids if sample.ended else (*sample.ids, eos)


def _logps(
    work: Work,
    prompts: Sequence[Ids],
    ids: Sequence[Sequence[Ids]],
    chosen: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
) -> list[dict[int, float]]:
    """For each pool, the sampling policy's log-prob of every sample that a pair uses.

    By the forward and in the precision of training, never the sampler's own numbers: another
    engine's log-probs would start the loss away from ln 2.
    """
    used = [sorted({i for pair in pairs for i in pair}) for pairs in chosen]
    most = max((len(indices) for indices in used), default=0)
    asked = [pool for pool, indices in enumerate(used) if indices]
    rows = []
    for pool in asked:
        padded = used[pool] + used[pool][:1] * (most - len(used[pool]))
        rows.append((prompts[pool], [ids[pool][i] for i in padded]))
    found: list[dict[int, float]] = [{} for _ in used]
    policy = load_policy(work.inputs["policy"])
    measure = partial(completion_logps, policy, temperature=temperature)
    values_of = scored(_after(work, 0.85), measure, policy, rows)
    for pool, values in zip(asked, values_of, strict=True):
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


def decoded(work: Work, drawn: Sequence[Sequence[Sample]]) -> list[list[str]]:
    """The texts of samples, without EOS and white space around them."""
    tokenizer = load_tokenizer(work.inputs["data"] / "tokenizer")
    return [
        [tokenizer.decode(sample.ids, skip_special_tokens=True).strip() for sample in samples]
        for samples in drawn
    ]


def write_samples(
    work: Work,
    asked: Sequence[Pool],
    drawn: Sequence[Sequence[Sample]],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]] | None = None,
) -> None:
    """Every sample as a row of samples.parquet."""
    rows = [
        {
            "prompt_id": pool.prompt_id,
            "prompt": pool.prompt,
            "sample": texts[p][i],
            "ids": sample.ids,
            "tokens": len(sample.ids),
            "ended": sample.ended,
            "score": None if scores is None else scores[p][i],
            "reference": None,
            "reference_score": None,
        }
        for p, (pool, samples) in enumerate(zip(asked, drawn, strict=True))
        for i, sample in enumerate(samples)
    ]
    tables.write_rows(work.folder / "samples.parquet", rows, tables.SAMPLE)


def _counts(
    asked: Sequence[Pool],
    drawn: Sequence[Sequence[Sample]],
    chosen: Sequence[Sequence[tuple[int, int]]],
    rows: Sequence[dict[str, Any]],
) -> Metrics:
    return {
        **sampled(drawn),
        "pairs": len(rows),
        "pairs_asked": sum(pool.rows for pool in asked),
        "pools_dropped_all_identical": sum(not pairs for pairs in chosen),
        "pairs_tied_in_score": sum(r["chosen_score"] == r["rejected_score"] for r in rows),
    }


def _factor(asked: Sequence[Pool], own: int) -> Metrics:
    """How many rows prompts without preferences add, and by what factor the rows grow."""
    rows = sum(pool.rows for pool in asked[:own])
    added = sum(pool.rows for pool in asked[own:])
    return {"pairs_asked_added": added, "rows_factor": (rows + added) / rows if rows else None}


def sampled(drawn: Sequence[Sequence[Sample]]) -> Metrics:
    """What is counted of pools of samples; None of no samples."""
    flat = [sample for samples in drawn for sample in samples]
    distinct = [len({sample.ids for sample in samples}) for samples in drawn]
    return {
        "pools": len(drawn),
        "samples": len(flat),
        "distinct_samples_per_pool": sum(distinct) / len(drawn) if drawn else None,
        "ended_rate": sum(sample.ended for sample in flat) / len(flat) if flat else None,
        "mean_tokens": sum(len(sample.ids) for sample in flat) / len(flat) if flat else None,
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
