"""The columns of a cell's parquet file: one row an (arm, candidate, replicate)."""

from __future__ import annotations

import pyarrow as pa

BEST_OF = (1, 4, 16, 64)  # the N of the best-of-N curves

_TEXT = {
    "cell",
    "block",
    "family",
    "settings",
    "complexity_name",
    "reward_class",
    "coverage",
    "arm",
}
_WHOLE = {
    *("horizon", "vocab", "n_prompts", "n_completions", "complexity", "reward_dim", "n_pairs"),
    *("n_held", "width", "seed", "candidate", "stop", "n_parameters", "jacobian_rank"),
}
_TRUTH = {"chosen", "hindsight", "converged"}
_LISTS = {"best_of_n": pa.list_(pa.float64()), "best_of_n_counts": pa.list_(pa.int64())}
_MAY_BE_NULL = {
    *("verifier_walsh", "verifier_entries", "generator_walsh", "generator_entries"),
    *("stop", "jacobian_rank"),
}
COLUMNS = (
    *("cell", "block", "family", "settings"),
    *("sharpness", "horizon", "vocab", "n_prompts", "n_completions"),
    *("complexity", "complexity_name"),
    *("verifier_walsh", "verifier_entries", "generator_walsh", "generator_entries"),
    *("reward_class", "reward_dim", "n_pairs", "n_held"),
    *("coverage", "noise", "reference_share", "beta", "width"),
    *("seed", "arm", "candidate", "ridge", "stop", "held_out_loss", "chosen", "hindsight"),
    *("kl", "regret", "win_rate", "val_loss", "val_accuracy", "best_of_n", "best_of_n_counts"),
    *("n_parameters", "jacobian_rank", "gradient", "steps", "converged"),
)


def schema() -> pa.Schema:
    """Names and types, in order.

    settings: JSON of the family's settings without the seed. candidate: the place of (ridge, stop)
    in its arm's list. chosen: least held-out loss of this replicate; hindsight: least mean KL over
    the replicates. kl and val_loss: nats. regret and best_of_n: reward units; best_of_n is the
    expected true reward of the best of N draws of the reference by the arm's score, less the
    reference's own mean, for the N in best_of_n_counts. Complexities: means over the first
    replicates; null where the tree has none.
    """
    return pa.schema([_field(name) for name in COLUMNS])


def _field(name: str) -> pa.Field:
    if name in _TEXT:
        kind = pa.string()
    elif name in _LISTS:
        kind = _LISTS[name]
    elif name in _TRUTH:
        kind = pa.bool_()
    else:
        kind = pa.int64() if name in _WHOLE else pa.float64()
    return pa.field(name, kind, nullable=name in _MAY_BE_NULL)
