"""The data card: what was counted, cut, dropped and shared, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from llm.data.config import DataConfig
from llm.data.example import Dataset, Example, Pair
from llm.data.rows import Corpus
from llm.data.splits import Split

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def quantiles(values: Sequence[int]) -> dict[str, float] | None:
    """Quantiles of token counts, None of nothing."""
    if not values:
        return None
    found = np.quantile(np.asarray(values), QUANTILES)
    return {f"{q:g}": round(float(v), 2) for q, v in zip(QUANTILES, found, strict=True)}


def lengths(references: Iterable[Example], pairs: Iterable[Example]) -> dict[str, object]:
    """Quantiles of lengths in tokens; completions with their EOS."""
    references, pairs = list(references), list(pairs)
    return {
        "prompt_tokens": quantiles([len(e.prompt_ids) for e in (*references, *pairs)]),
        "reference_tokens": quantiles([len(e.completion_ids[0]) for e in references]),
        "chosen_tokens": quantiles([len(e.completion_ids[0]) for e in pairs]),
        "rejected_tokens": quantiles([len(e.completion_ids[1]) for e in pairs]),
    }


@dataclass(frozen=True)
class Cuts:
    """How many distinct prompts and compared completions were cut."""

    prompts: int
    pair_completions: int


def text_card(
    corpus: Corpus, split: Split, dataset: Dataset, cuts: Cuts, limits: DataConfig, seed: int
) -> dict[str, Any]:
    """The data card of a text source."""
    references = (*dataset.sft, *dataset.test)
    pairs = (*dataset.pairs, *dataset.validation_pairs)
    return {
        "counts": {
            "sft": len(dataset.sft),
            "pairs": len(dataset.pairs),
            "validation_pairs": len(dataset.validation_pairs),
            "test": len(dataset.test),
            "posts": len({e.post_id for e in (*references, *pairs)}),
            "truncated": cuts.prompts,
        },
        "split": {
            "kind": split.kind,
            "seed": seed,
            "train_posts": len({e.post_id for e in (*dataset.sft, *dataset.pairs)}),
            "validation_posts": len({e.post_id for e in dataset.validation_pairs}),
            "test_posts": len({e.post_id for e in dataset.test}),
            "train_posts_with_several_prompts": several((*dataset.sft, *dataset.pairs)),
            "left_out": split.left_out,
            "shared_posts": split.shared,
        },
        "cut": {
            "prompts": cuts.prompts,
            "pair_completions": cuts.pair_completions,
        },
        "dropped": dict(corpus.dropped),
        "length_quantiles": lengths(references, pairs),
        "overlap": overlaps(corpus),
        "label_noise": label_noise(corpus.pairs),
        "notes": notes(limits) + unresolved(corpus.sources),
        "sources": corpus.sources,
        "ignored_files": corpus.ignored,
    }


def several(examples: Iterable[Example]) -> int:
    """Posts whose prompt is not the same wherever they stand: their sources spell or cut them
    differently (a re-packaged data set may), so that SFT and preferences see two prompts.
    """
    prompts: dict[str, set[str]] = {}
    for example in examples:
        prompts.setdefault(example.post_id, set()).add(example.prompt)
    return sum(len(texts) > 1 for texts in prompts.values())


def notes(limits: DataConfig) -> list[str]:
    """The rules by which texts were cut or left out, in words."""
    sft = (
        f"References of more than {limits.max_completion_tokens} tokens with EOS: left out of SFT, "
        "for a cut one would teach a wrong end; kept whole in the test set."
        if limits.has_references
        else f"Prompts end in {limits.prompt_end!r}, which the references do not answer: no SFT."
    )
    return [
        f"Prompts of more than {limits.max_prompt_tokens} tokens: the post is cut at its last "
        "newline, else by a character, until the prompt fits.",
        f"Compared summaries of more than {limits.max_pair_completion_tokens} tokens with EOS: cut "
        "and closed by EOS, where the reward is read.",
        sft,
        "White space around summaries is taken off, one space put before.",
        "Posts are the same by title and the beginning of the text, letters and digits alone. "
        "Where the source has no parts, the seed divides by post; published parts are left as they "
        "are, and shared posts counted.",
    ]


def unresolved(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the card must say of hub data whose commit could not be learned."""
    names = {str(s["path"]) for s in sources if "fingerprint" in s and s.get("revision") is None}
    return [
        f"{name}: its commit is not known (no hub, no cache): the study's address holds the name "
        "alone, and does not change when the data do."
        for name in sorted(names)
    ]


def overlaps(corpus: Corpus) -> dict[str, int]:
    """Posts shared by each two sources: "posts.jsonl & preferences.jsonl" -> number of posts."""
    keys: dict[str, set[str]] = {}
    for post in (*corpus.posts, *(pair.post for pair in corpus.pairs)):
        keys.setdefault(post.source, set()).add(post.key)
    return {f"{a} & {b}": len(keys[a] & keys[b]) for a, b in combinations(sorted(keys), 2)}


def label_noise(pairs: Iterable[Pair]) -> dict[str, int]:
    """Comparisons of the same two texts of one post: repeated, agreeing, in several files."""
    labels: dict[tuple[str, frozenset[str]], list[Pair]] = {}
    for pair in pairs:
        texts = frozenset((pair.chosen, pair.rejected))
        labels.setdefault((pair.post.key, texts), []).append(pair)
    repeated = [same for same in labels.values() if len(same) > 1]
    return {
        "repeated_pairs": len(repeated),
        "unanimous": sum(len({pair.chosen for pair in same}) == 1 for same in repeated),
        "across_sources": sum(len({pair.post.source for pair in same}) > 1 for same in repeated),
    }
