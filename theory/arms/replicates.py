"""Replicates on all cores, and the distinct pairs of each: what every fit of many data sets needs.

A program always runs CHUNK replicates, one after the other, whatever their number and whatever the
number of cores: shapes repeat, so nothing is compiled twice, and no result depends on who shares a
chunk or on how many threads there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

import theory._x64  # noqa: F401
from theory.tree import TokenTree

CHUNK = 8  # replicates of one call
ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}  # the cores are taken by replicates


def program(function: Callable[..., Any]) -> Callable[..., Any]:
    """jit of one replicate's function(shared, mapped, static) over CHUNK of them.

    `mapped` has a leading axis of replicates in every array, and so has what comes back; `static`
    is hashable. One program a shape and `static`.
    """

    @partial(jax.jit, static_argnums=2, compiler_options=_options())
    @wraps(function)
    def many(shared: Any, mapped: Any, static: Any) -> Any:
        return jax.lax.map(lambda one: function(shared, one, static), mapped)

    return many


def _options() -> dict[str, bool]:
    return ONE_THREAD if jax.default_backend() == "cpu" else {}


def on_all_cores(many: Callable[..., Any], shared: Any, mapped: Any, static: Any) -> Any:
    """many(shared, mapped, static) in chunks, a thread a core: numpy arrays of all replicates.

    The last chunk is filled with zeros, which must be data that a fit ends on at once.
    """
    leaves, structure = jax.tree.flatten(mapped)
    count = len(leaves[0])

    def run(start: int) -> list[np.ndarray]:
        some = [_filled(leaf[start : start + CHUNK]) for leaf in leaves]
        solved = many(shared, jax.tree.unflatten(structure, some), static)
        return [np.asarray(part)[: count - start] for part in jax.tree.leaves(solved)]

    shared = jax.tree.map(jnp.asarray, shared)
    with ThreadPoolExecutor(cores()) as pool:
        parts = list(pool.map(run, range(0, count, CHUNK)))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _filled(part: np.ndarray) -> jax.Array:
    missing = CHUNK - len(part)
    return jnp.asarray(np.pad(part, ((0, missing), *[(0, 0)] * (part.ndim - 1))))


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


# --- pairs ----------------------------------------------------------------------------------------


def distinct_pairs(
    tree: TokenTree, pairs: Int[np.ndarray, "R N 2"], weights: Float[np.ndarray, "R N"]
) -> tuple[Int[np.ndarray, "R M 2"], Float[np.ndarray, "R M 2"]]:
    """The pairs of different completions that occur, each once, and how often either side won.

    pairs: winner and loser. Back come (lower leaf, higher leaf) and (wins of the lower, of the
    higher). M depends on the shape of the data alone: a power of two that has room for N pairs, or
    for all that the tree has and one row more, if these are fewer. Pairs of one completion with
    itself, which say nothing, and unused rows are (0, 0) with no wins.
    """
    count, n = pairs.shape[:2]
    total = tree.n_prompts * tree.n_leaves
    live = len(tree.leaves)
    room = _power_of_two(min(n, tree.n_prompts * (live * (live - 1) // 2) + 1))
    differ = pairs[:, :, 0] != pairs[:, :, 1]
    low, high = pairs.min(axis=2), pairs.max(axis=2)
    keys = np.where(differ, low.astype(np.int64) * total + high, 0)
    order = np.argsort(keys, axis=1, kind="stable")
    keys = np.take_along_axis(keys, order, axis=1)
    new = np.ones_like(keys, dtype=bool)
    new[:, 1:] = keys[:, 1:] != keys[:, :-1]
    rows = np.broadcast_to(np.arange(count)[:, None], keys.shape)
    place = rows * room + np.cumsum(new, axis=1) - 1
    ends = np.zeros((count * room, 2), dtype=np.int64)
    ends[place[new]] = np.stack(np.divmod(keys[new], total), axis=1)
    weight = np.take_along_axis(np.where(differ, weights, 0.0), order, axis=1)
    lower_won = np.take_along_axis(pairs[:, :, 0] == low, order, axis=1)
    wins = [
        np.bincount(place.reshape(-1), (weight * side).reshape(-1), count * room)
        for side in (lower_won, ~lower_won)
    ]
    return ends.reshape(count, room, 2), np.stack(wins, axis=1).reshape(count, room, 2)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
