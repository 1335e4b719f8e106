"""How many pairs each road needs for a stated KL, and their ratio (numpy only).

N(target) is where the piecewise linear curve of log mean KL over log N first comes down to the
target. Nothing is extrapolated: a target that the smallest N already reaches, or the largest does
not, leaves N unknown, and the ratio has a bound at most. Intervals are percentiles of a bootstrap
over replicates, which both roads share (the same seed is the same reward and the same pairs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from theory.errors import InputError

TARGETS = (0.5, 0.25, 0.1)  # nats
RESAMPLES = 1_000
LOWEST, HIGHEST = 2.5, 97.5  # percentiles
BOUNDS = ("none", "ratio is at least", "ratio is at most", "neither arm reaches it")
COLUMNS = (
    *("family", "setting", "complexity_name", "complexity", "sharpness", "horizon"),
    *("choice", "offline_arm", "online_arm", "target_kl", "n_online", "n_offline"),
    *("ratio", "low", "high", "bound", "replicates"),
)
OFFLINE = ("offline_all", "offline_all_one_hot", "offline_matched", "offline_proper")
ONLINE = (
    *("two_stage", "two_stage_full", "online_dpo_sft", "online_dpo_dpo"),
    *("online_population_sft", "online_population_dpo"),
)
NETWORKS = ("mlp", "transformer")
ROADS = (  # arms that are held against each other: offline, online
    *((offline, online) for offline in OFFLINE for online in ONLINE),
    *((f"{net}_{arm}", f"{net}_two_stage") for net in NETWORKS for arm in ("offline", "dpo")),
)


@dataclass(frozen=True, eq=False)
class Curve:
    """KL of one arm at each N on the same replicates. Raises InputError where it means nothing."""

    n_pairs: tuple[int, ...]  # ascending
    kl: Float[np.ndarray, "N R"]  # nats

    def __post_init__(self) -> None:
        if self.kl.ndim != 2 or len(self.kl) != len(self.n_pairs) or not self.kl.size:
            raise InputError(
                f"KL of shape {self.kl.shape} for {len(self.n_pairs)} numbers of pairs"
            )
        if list(self.n_pairs) != sorted(set(self.n_pairs)) or self.n_pairs[0] < 1:
            raise InputError(f"numbers of pairs must ascend from 1, got {self.n_pairs}")
        if not (np.isfinite(self.kl).all() and self.kl.mean(axis=1).min() > 0):
            raise InputError("the KL of a curve must be finite and its mean > 0")


@dataclass(frozen=True)
class Ratio:
    """N_offline / N_online at one target. None: not known; ratio is then a bound, or None."""

    target_kl: float  # nats
    n_online: float | None
    n_offline: float | None
    ratio: float | None
    low: float | None
    high: float | None
    bound: str  # one of BOUNDS


def data_efficiency(
    offline: Curve,
    online: Curve,
    target: float | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ratio | None:
    """The ratio at one target, with its 95 % interval where neither N is bounded.

    target: nats; None: what `offline` reaches at its largest N, found anew in every resample.
    low or high is None where the interval runs out of the curves. None in place of a Ratio where
    both arms reach the target at their smallest N: that says nothing. Raises InputError where the
    curves have different replicates, or for a target that is not > 0.
    """
    if offline.kl.shape[1] != online.kl.shape[1]:
        raise InputError(
            f"curves of {offline.kl.shape[1]} and {online.kl.shape[1]} replicates are not paired"
        )
    if target is not None and not (math.isfinite(target) and target > 0):
        raise InputError(f"target must be > 0 nats, got {target!r}")
    means = offline.kl.mean(axis=1)[None], online.kl.mean(axis=1)[None]
    goal = means[0][:, -1] if target is None else np.array([target])
    spent = crossing(offline.n_pairs, means[0], goal), crossing(online.n_pairs, means[1], goal)
    n_offline, n_online = float(spent[0][0]), float(spent[1][0])
    found = _bounded(n_offline, n_online, offline.n_pairs, online.n_pairs)
    if found is None:
        return None
    ratio, bound = found
    low = high = None
    if bound == "none":
        low, high = _interval(offline, online, target, resamples, seed)
    return Ratio(float(goal[0]), _known(n_online), _known(n_offline), ratio, low, high, bound)


def crossing(
    n_pairs: Sequence[int], means: Float[np.ndarray, "B N"], target: Float[np.ndarray, " B"]
) -> Float[np.ndarray, " B"]:
    """N at which each row first comes down to its target; 0 if at once, inf if never."""
    x, y, goal = np.log(np.asarray(n_pairs, dtype=float)), np.log(means), np.log(target)[:, None]
    reached = y <= goal
    first = np.argmax(reached, axis=1)
    rows = np.arange(len(y))
    before = np.maximum(first - 1, 0)
    above, below = y[rows, before], y[rows, first]
    fall = np.where(above > below, above - below, 1.0)
    share = np.clip((above - goal[:, 0]) / fall, 0.0, 1.0)
    n = np.exp(x[before] + share * (x[first] - x[before]))
    return np.where(reached.any(axis=1), np.where(first == 0, 0.0, n), np.inf)


def _bounded(
    n_offline: float, n_online: float, of_offline: Sequence[int], of_online: Sequence[int]
) -> tuple[float | None, str] | None:
    """(ratio or its bound, what it is); None where nothing is known."""
    both = n_offline, n_online
    if both == (math.inf, math.inf):
        return None, "neither arm reaches it"
    if both == (0.0, 0.0):
        return None
    offline = {0.0: of_offline[0], math.inf: of_offline[-1]}.get(n_offline, n_offline)
    online = {0.0: of_online[0], math.inf: of_online[-1]}.get(n_online, n_online)
    if n_offline == math.inf or n_online == 0.0:
        return offline / online, "ratio is at least"
    if n_offline == 0.0 or n_online == math.inf:
        return offline / online, "ratio is at most"
    return n_offline / n_online, "none"


def _interval(
    offline: Curve, online: Curve, target: float | None, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Percentiles of the ratio over resampled replicates; what is not known counts as 0 or inf."""
    count = offline.kl.shape[1]
    if count < 2:
        return None, None
    shares = _shares(count, resamples, seed)
    means = [shares @ curve.kl.T for curve in (offline, online)]
    goal = means[0][:, -1] if target is None else np.full(resamples, target)
    spent = [crossing(c.n_pairs, m, goal) for c, m in zip((offline, online), means, strict=True)]
    lower = np.empty(resamples)
    upper = np.empty(resamples)
    for b, (n_offline, n_online) in enumerate(zip(*spent, strict=True)):
        found = _bounded(float(n_offline), float(n_online), offline.n_pairs, online.n_pairs)
        ratio, bound = (None, "") if found is None else found
        lower[b] = ratio if ratio is not None and bound in ("none", BOUNDS[1]) else 0.0
        upper[b] = ratio if ratio is not None and bound in ("none", BOUNDS[2]) else math.inf
    low = np.quantile(lower, LOWEST / 100, method="lower")
    high = np.quantile(upper, HIGHEST / 100, method="higher")
    return _known(float(low)), _known(float(high))


@lru_cache(maxsize=8)
def _shares(count: int, resamples: int, seed: int) -> Float[np.ndarray, "B R"]:
    """Weight of each replicate in each resample; rows sum to 1."""
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    places = draws + count * np.arange(resamples)[:, None]
    counts = np.bincount(places.reshape(-1), minlength=resamples * count)
    return counts.reshape(resamples, count) / count


def _known(n: float) -> float | None:
    return n if 0.0 < n < math.inf else None


# --- from the rows of a sweep ---------------------------------------------------------------------

KEYS = ("family", "settings", "complexity_name", "complexity", "sharpness", "horizon")
HELD = ("coverage", "noise", "reference_share", "beta", "reward_class", "width")


def curves_of(rows: Mapping[str, np.ndarray], choice: str) -> dict[tuple, dict[str, Curve]]:
    """The curve of every arm at every setting, all but N held fixed.

    rows: columns of the sweep, as arrays. choice: chosen or hindsight. Keys: the values of KEYS
    and HELD. A cell that two blocks share counts
    once. Arms that have not the same seeds at every N are cut to the seeds that they share.
    """
    keys = (*KEYS, *HELD)
    picked = np.flatnonzero(rows[choice])
    found: dict[tuple, dict[str, dict[int, dict[int, float]]]] = {}
    columns = [rows[name][picked].tolist() for name in (*keys, "arm", "n_pairs", "seed", "kl")]
    for *key, arm, n, seed, kl in zip(*columns, strict=True):
        found.setdefault(tuple(key), {}).setdefault(arm, {}).setdefault(n, {})[seed] = kl
    out = {}
    for key, arms in found.items():
        shared = set.intersection(*(set(k) for by_n in arms.values() for k in by_n.values()))
        seeds = sorted(shared)
        out[key] = {
            arm: Curve(
                tuple(sorted(by_n)),
                np.array([[by_n[n][seed] for seed in seeds] for n in sorted(by_n)]),
            )
            for arm, by_n in arms.items()
        }
    return out


def efficiency_rows(
    rows: Mapping[str, np.ndarray], targets: Sequence[float] = TARGETS, *, seed: int = 0
) -> list[dict[str, Any]]:
    """One record, keys COLUMNS, for each setting, choice, two roads and target that says a thing.

    Settings of which an arm has fewer than two numbers of pairs have no curve and no record. The
    last target of each is what the offline arm reaches at its largest N.
    """
    out = []
    for choice in ("chosen", "hindsight"):
        for key, arms in curves_of(rows, choice).items():
            named = dict(zip((*KEYS, *HELD), key, strict=True))
            held = json.loads(named.pop("settings")) | {name: named.pop(name) for name in HELD}
            setting = {"setting": json.dumps(held, sort_keys=True), "choice": choice}
            for offline, online in ROADS:
                pair = [arms[name] for name in (offline, online) if name in arms]
                if len(pair) < 2 or min(len(curve.n_pairs) for curve in pair) < 2:
                    continue
                for target in (*targets, None):
                    found = data_efficiency(pair[0], pair[1], target, seed=seed)
                    if found is None:
                        continue
                    record = named | setting | {"offline_arm": offline, "online_arm": online}
                    record |= asdict(found) | {"replicates": pair[0].kl.shape[1]}
                    out.append({name: record[name] for name in COLUMNS})
    return out
