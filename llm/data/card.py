"""The data card: what was counted, cut, dropped and shared, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llm.data.example import Example

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
